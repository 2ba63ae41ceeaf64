// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Layer normalisation (ONNX `LayerNormalization`; Ba et al., 2016): operands X, scale and an
/// optional bias; over all axes from `axis` on. Optional results: mean and inverse standard
/// deviation.
public struct LayerNormalization: CostedOperator {
  public static let name = "LayerNormalization"
  public var axis: Int
  public var epsilon: Double

  /// Creates the operator.
  public init(axis: Int = -1, epsilon: Double = 1e-5) {
    self.axis = axis
    self.epsilon = epsilon
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -1)
    epsilon = try attributes.float("epsilon", 1e-5)
  }

  public var attributes: Attributes { ["axis": .int(axis), "epsilon": .float(epsilon)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    try inputs.requireFloat(1)
    try inputs.requireNumbers(ifGiven: 2)
    _ = try inputs.tensor(1)
    guard let dims = x.dims else {
      return [.tensor(x), typed(.float32, nil), typed(.float32, nil)]
    }
    let axis = try Axis.resolved(axis, rank: dims.count)
    let reduced = dims.indices.map { $0 < axis ? dims[$0] : Dim(1) }
    return [.tensor(x), typed(.float32, reduced), typed(.float32, reduced)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    (outputs.first?.shape ?? []).reduce(8.0) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let axis = try Axis.resolved(axis, rank: x.rank)
    let rows = x.shape[..<axis].reduce(1, &*)
    let width = x.shape[axis...].reduce(1, &*)
    let scale = try Self.parameter(try inputs.required(1), x.shape, axis)
    let bias = try inputs.optional(2).map { (t: Tensor) throws(ApusError) in
      try Self.parameter(t, x.shape, axis)
    }
    var values = x.doubles()
    var means: [Double] = []
    var inverses: [Double] = []
    for row in 0..<rows {
      let range = (row * width)..<((row + 1) * width)
      let mean = values[range].reduce(0, +) / Double(width)
      let variance = values[range].reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(width)
      let inverse = 1 / (variance + epsilon).squareRoot()
      for (column, index) in range.enumerated() {
        values[index] = (values[index] - mean) * inverse * scale[column] + (bias?[column] ?? 0)
      }
      means.append(mean)
      inverses.append(inverse)
    }
    let reduced = x.shape.indices.map { $0 < axis ? x.shape[$0] : 1 }
    return [
      .tensor(try Tensor(values, x.dataType, shape: x.shape)),
      .tensor(try Tensor(means, .float32, shape: reduced)),
      .tensor(try Tensor(inverses, .float32, shape: reduced)),
    ]
  }

  /// A parameter broadcast over the normalised axes.
  private static func parameter(_ tensor: Tensor, _ shape: [Int], _ axis: Int) throws(ApusError)
    -> [Double]
  {
    let normalised = Array(shape[axis...])
    let width = normalised.reduce(1, &*)
    let values = tensor.doubles()
    if values.count == width { return values }
    if values.count == 1 { return Array(repeating: values[0], count: width) }
    guard tensor.rank <= normalised.count else {
      throw ApusError(.typeMismatch, "a parameter \(tensor.type) for lines of shape \(normalised)")
    }
    let target = try Tensor(.float32, shape: normalised)
    guard
      case .tensor(let sum)? = try Add().evaluate([
        .tensor(target), .tensor(try tensor.converted(to: .float32)),
      ]).first, sum.shape == normalised
    else {
      throw ApusError(.typeMismatch, "a parameter \(tensor.type) for lines of shape \(normalised)")
    }
    return sum.doubles()
  }
}

extension LayerNormalization: RowOperator {
  public func isOverRows(_ inputs: [TensorType?]) -> Bool {
    guard let x = inputs.first ?? nil, x.dataType == .float32, let dims = x.dims, let last = dims.last
    else { return false }
    return (axis == -1 || axis == dims.count - 1)
      && inputs.dropFirst().allSatisfy { parameter in
        parameter?.dataType == .float32 && parameter?.dims == [last]
      }
  }
}

extension LayerNormalization: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched && axis != 0 && axis != -resultRank
  }
}
