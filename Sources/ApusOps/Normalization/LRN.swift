// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Local response normalisation over neighbouring channels (ONNX `LRN`; Krizhevsky et al., 2012):
/// `y = x / (bias + alpha / size * sum(x^2 over the window))^beta`.
public struct LRN: AnchorOperator, ChannelsLastConvertible, CostedOperator, SampledOperator {
  public static let name = "LRN"
  public var size: Int
  public var alpha: Double
  public var beta: Double
  public var bias: Double
  public var isChannelsLast: Bool

  /// Creates the operator.
  public init(
    size: Int, alpha: Double = 1e-4, beta: Double = 0.75, bias: Double = 1,
    channelsLast: Bool = false
  ) {
    self.size = size
    self.alpha = alpha
    self.beta = beta
    self.bias = bias
    isChannelsLast = channelsLast
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    size = try attributes.int("size")
    alpha = try attributes.float("alpha", 1e-4)
    beta = try attributes.float("beta", 0.75)
    bias = try attributes.float("bias", 1)
    isChannelsLast = try attributes.bool("channels_last", false)
  }

  public var attributes: Attributes {
    [
      "size": .int(size), "alpha": .float(alpha), "beta": .float(beta), "bias": .float(bias),
      "channels_last": .bool(isChannelsLast),
    ]
  }

  public func ownsEpilogue(_ inputs: [TensorType?]) -> Bool { isChannelsLast }
  public var epilogueOperandLimit: Int { 0 }

  public func channelsLast() -> (any Operator)? {
    var copy = self
    copy.isChannelsLast = true
    return copy
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    guard size > 0, size <= 1 << 30 else {
      throw ApusError(.invalidAttribute, "'size' is \(size)")
    }
    guard x.rank.map({ $0 >= 2 }) ?? true else {
      throw ApusError(.typeMismatch, "the input \(x) has no channels")
    }
    return [.tensor(x)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    (outputs.first?.shape ?? []).reduce(Double(size) + 4) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let values = x.doubles()
    let result = values.indices.map { element($0, values, x.shape) }
    return [.tensor(try Tensor(result, x.dataType, shape: x.shape))]
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    guard let x = inputs.first ?? nil else {
      throw ApusError(.typeMismatch, "the input of LRN is missing")
    }
    let values = x.doubles()
    guard linearIndices.allSatisfy(values.indices.contains) else {
      throw ApusError(.invalidArgument, "a sample lies outside the result \(x.shape)")
    }
    return linearIndices.map { element($0, values, x.shape) }
  }

  /// The result at a row-major position.
  private func element(_ index: Int, _ values: [Double], _ shape: [Int]) -> Double {
    let (_, channels, inner) = Axis.split(shape, at: isChannelsLast ? shape.count - 1 : 1)
    let c = index / inner % channels
    let first = index - c * inner
    let before = (size - 1) / 2
    var sum = 0.0
    for d in max(0, c - before)..<min(channels, c - before + size) {
      sum += values[first + d * inner] * values[first + d * inner]
    }
    return values[index] / RealMath.power(bias + alpha / Double(size) * sum, beta)
  }
}

extension LRN: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
