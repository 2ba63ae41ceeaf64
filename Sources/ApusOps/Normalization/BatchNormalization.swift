// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Batch normalisation (ONNX `BatchNormalization`): operands X, scale, bias, mean, variance, each of
/// the last four `[C]`; `y = (x - mean) / sqrt(variance + epsilon) * scale + bias`.
///
/// In training mode the batch's own statistics are used and the running ones are returned.
public struct BatchNormalization: Operator {
  public static let name = "BatchNormalization"
  public var epsilon: Double
  public var momentum: Double
  public var trainingMode: Bool

  /// Creates the operator.
  public init(epsilon: Double = 1e-5, momentum: Double = 0.9, trainingMode: Bool = false) {
    self.epsilon = epsilon
    self.momentum = momentum
    self.trainingMode = trainingMode
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    epsilon = try attributes.float("epsilon", 1e-5)
    momentum = try attributes.float("momentum", 0.9)
    trainingMode = try attributes.bool("training_mode", false)
  }

  public var attributes: Attributes {
    [
      "epsilon": .float(epsilon), "momentum": .float(momentum),
      "training_mode": .bool(trainingMode),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    for index in 0..<5 { try inputs.requireFloat(index) }
    if let channels = x.dims.flatMap({ $0.count > 1 ? $0[1].value : nil }) {
      for index in 1..<5 {
        let type = try inputs.tensor(index)
        if let count = type.shape?.reduce(1, &*), count != channels {
          throw ApusError(
            .typeMismatch, "operand \(index) has \(count) elements for \(channels) channels")
        }
      }
    }
    return [.tensor(x), .tensor(try inputs.tensor(3)), .tensor(try inputs.tensor(4))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    var values = x.doubles()
    let parameters = try [1, 2, 3, 4].map { (index: Int) throws(ApusError) in
      try inputs.required(index)
    }
    let (scale, bias) = (parameters[0].doubles(), parameters[1].doubles())
    var (mean, variance) = (parameters[2].doubles(), parameters[3].doubles())
    let channels = x.rank > 1 ? x.shape[1] : 1
    let inner = x.rank > 2 ? x.shape[2...].reduce(1, *) : 1
    let batch = x.rank > 0 ? x.shape[0] : 1
    guard scale.count == channels, bias.count == channels, mean.count == channels,
      variance.count == channels
    else { throw ApusError(.typeMismatch, "the parameters do not fit \(channels) channels") }
    var running: [RuntimeValue] = [.tensor(parameters[2]), .tensor(parameters[3])]
    if trainingMode {
      let statistics = Self.statistics(values, batch, channels, inner)
      running = [
        .tensor(
          try Tensor(
            mean.indices.map { mean[$0] * momentum + statistics.mean[$0] * (1 - momentum) },
            parameters[2].dataType, shape: parameters[2].shape)),
        .tensor(
          try Tensor(
            mean.indices.map { variance[$0] * momentum + statistics.variance[$0] * (1 - momentum) },
            parameters[3].dataType, shape: parameters[3].shape)),
      ]
      (mean, variance) = statistics
    }
    for n in 0..<batch {
      for c in 0..<channels {
        let factor = scale[c] / (variance[c] + epsilon).squareRoot()
        let start = (n * channels + c) * inner
        for i in start..<(start + inner) { values[i] = (values[i] - mean[c]) * factor + bias[c] }
      }
    }
    return [.tensor(try Tensor(values, x.dataType, shape: x.shape))] + running
  }

  private static func statistics(_ values: [Double], _ batch: Int, _ channels: Int, _ inner: Int)
    -> (mean: [Double], variance: [Double])
  {
    var mean = [Double](repeating: 0, count: channels)
    var variance = mean
    let count = Double(max(1, batch * inner))
    for c in 0..<channels {
      var sum = 0.0
      var squares = 0.0
      for n in 0..<batch {
        for i in 0..<inner { sum += values[(n * channels + c) * inner + i] }
      }
      mean[c] = sum / count
      for n in 0..<batch {
        for i in 0..<inner {
          let d = values[(n * channels + c) * inner + i] - mean[c]
          squares += d * d
        }
      }
      variance[c] = squares / count
    }
    return (mean, variance)
  }
}
