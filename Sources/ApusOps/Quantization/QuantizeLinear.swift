// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// How scales and zero points of a quantised tensor are laid out.
struct QuantizationLayout {
  /// For each element, the index of its parameters.
  let index: (Int) -> Int

  /// Per tensor (one scale), per axis (a vector along `axis`) or in blocks of `blockSize` along it.
  init(_ shape: [Int], scale: Tensor, axis: Int, blockSize: Int) throws(ApusError) {
    if scale.count == 1 && blockSize == 0 {
      index = { _ in 0 }
      return
    }
    let axis = try Axis.resolved(axis, rank: max(1, shape.count))
    guard axis < shape.count else {
      throw ApusError(.typeMismatch, "scales \(scale.type) for a scalar")
    }
    let (_, size, inner) = Axis.split(shape, at: axis)
    if blockSize > 0 {
      let blocks = size / blockSize + (size % blockSize == 0 ? 0 : 1)
      var expected = shape
      expected[axis] = blocks
      guard scale.shape == expected else {
        throw ApusError(
          .typeMismatch, "scales \(scale.type) for blocks of \(blockSize) in \(shape)")
      }
      index = { position in
        let outer = position / (size * inner)
        let block = position / inner % size / blockSize
        return (outer * blocks + block) * inner + position % inner
      }
      return
    }
    guard scale.count == size else {
      throw ApusError(
        .typeMismatch, "\(scale.count) scales for an axis of \(size) elements")
    }
    index = { $0 / inner % size }
  }
}

/// `saturate(round(x / scale) + zero_point)` (ONNX `QuantizeLinear`): operands x, scale, zero point.
public struct QuantizeLinear: Operator {
  public static let name = "QuantizeLinear"
  public var axis: Int
  public var blockSize: Int
  /// The element type when no zero point says it.
  public var outputType: DataType
  public var saturate: Bool

  /// Creates the operator.
  public init(
    axis: Int = 1, blockSize: Int = 0, outputType: DataType = .uint8, saturate: Bool = true
  ) {
    self.axis = axis
    self.blockSize = blockSize
    self.outputType = outputType
    self.saturate = saturate
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 1)
    blockSize = try attributes.int("block_size", 0)
    outputType = try attributes.type("output_type", .uint8)
    saturate = try attributes.bool("saturate", true)
  }

  public var attributes: Attributes {
    [
      "axis": .int(axis), "block_size": .int(blockSize), "output_type": .type(outputType),
      "saturate": .bool(saturate),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireNumbers(0)
    try inputs.requireFloat(1)
    try inputs.requireNumbers(ifGiven: 2)
    let type = inputs.has(2) ? try inputs.tensor(2).dataType : outputType
    guard type.isFloat || type.isInteger else {
      throw ApusError(.invalidAttribute, "quantisation to \(type)")
    }
    return [typed(type, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let scale = try inputs.required(1)
    let zero = try inputs.optional(2)
    let type = zero?.dataType ?? outputType
    let layout = try QuantizationLayout(x.shape, scale: scale, axis: axis, blockSize: blockSize)
    let scales = scale.doubles()
    let zeros = zero?.doubles() ?? Array(repeating: 0, count: scales.count)
    guard zeros.count == scales.count else {
      throw ApusError(.typeMismatch, "\(zeros.count) zero points for \(scales.count) scales")
    }
    let values = x.doubles()
    // The division happens in the operands' own precision, which decides ties.
    let single = x.dataType != .float64
    func quotient(_ position: Int) -> Double {
      let s = scales[layout.index(position)]
      return single ? Double(Float(values[position]) / Float(s)) : values[position] / s
    }
    if type.isFloat {
      return [
        .tensor(
          try Tensor(
            values.indices.map { quotient($0) + zeros[layout.index($0)] }, type, shape: x.shape,
            saturate: saturate))
      ]
    }
    let range = type.integerRange
    let quantised = values.indices.map { position -> Int64 in
      let rounded = quotient(position).rounded(.toNearestOrEven) + zeros[layout.index(position)]
      return min(range.upperBound, max(range.lowerBound, Int64(clamping: rounded)))
    }
    return [.tensor(try Tensor(quantised, type, shape: x.shape))]
  }
}

/// `(x - zero_point) * scale` (ONNX `DequantizeLinear`): operands x, scale, zero point; the result has
/// the scale's element type.
public struct DequantizeLinear: Operator {
  public static let name = "DequantizeLinear"
  public var axis: Int
  public var blockSize: Int
  /// The result's element type, when it is not the scale's.
  public var outputType: DataType?

  /// Creates the operator.
  public init(axis: Int = 1, blockSize: Int = 0, outputType: DataType? = nil) {
    self.axis = axis
    self.blockSize = blockSize
    self.outputType = outputType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 1)
    blockSize = try attributes.int("block_size", 0)
    outputType = nil
    if case .type(let type)? = attributes.value("output_type") { outputType = type }
  }

  public var attributes: Attributes {
    var result: Attributes = ["axis": .int(axis), "block_size": .int(blockSize)]
    if let outputType { result["output_type"] = .type(outputType) }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let scale = try inputs.tensor(1)
    try inputs.requireNumbers(0)
    try inputs.requireFloat(1)
    try inputs.requireNumbers(ifGiven: 2)
    guard outputType?.isFloat ?? true else {
      throw ApusError(.invalidAttribute, "dequantisation to \(scale.dataType)")
    }
    return [typed(outputType ?? scale.dataType, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let scale = try inputs.required(1)
    let layout = try QuantizationLayout(x.shape, scale: scale, axis: axis, blockSize: blockSize)
    let scales = scale.doubles()
    let zeros = try inputs.optional(2)?.doubles() ?? Array(repeating: 0, count: scales.count)
    guard zeros.count == scales.count else {
      throw ApusError(.typeMismatch, "\(zeros.count) zero points for \(scales.count) scales")
    }
    let values = x.doubles()
    let result = values.indices.map { position in
      (values[position] - zeros[layout.index(position)]) * scales[layout.index(position)]
    }
    return [.tensor(try Tensor(result, outputType ?? scale.dataType, shape: x.shape))]
  }
}

/// `uint8` quantisation with the scale and zero point of the data itself (ONNX
/// `DynamicQuantizeLinear`): results y, scale, zero point.
public struct DynamicQuantizeLinear: Operator {
  public static let name = "DynamicQuantizeLinear"

  /// Creates the operator.
  public init() {}

  public init(reading attributes: inout AttributeReader) throws(ApusError) {}

  public var attributes: Attributes { [:] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try inputs.requireFloat(0)
    return [typed(.uint8, try inputs.tensor(0).dims), typed(.float32, []), typed(.uint8, [])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let values = x.floats()
    let low = values.reduce(Float(0)) { min($0, $1) }
    let high = values.reduce(Float(0)) { max($0, $1) }
    let scale = (high - low) / 255
    let divisor = scale == 0 ? 1 : scale
    let zero = max(0, min(255, (0 - low / divisor).rounded(.toNearestOrEven)))
    let quantised = values.map { value -> Int64 in
      let rounded = (value / divisor).rounded(.toNearestOrEven) + zero
      return Int64(clamping: Double(max(0, min(255, rounded))))
    }
    return [
      .tensor(try Tensor(quantised, .uint8, shape: x.shape)),
      .tensor(try Tensor([scale], shape: [])),
      .tensor(try Tensor([Int64(clamping: Double(zero))], .uint8, shape: [])),
    ]
  }
}

/// Integer matrix product with zero points, 32-bit result (ONNX `MatMulInteger`): operands A, B, and
/// optional zero points of A (one or per row) and B (one or per column).
public struct MatMulInteger: CostedOperator {
  public static let name = "MatMulInteger"

  /// Creates the operator.
  public init() {}

  public init(reading attributes: inout AttributeReader) throws(ApusError) {}

  public var attributes: Attributes { [:] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let a = try inputs.tensor(0)
    let b = try inputs.tensor(1)
    guard a.dataType.isInteger, b.dataType.isInteger else {
      throw ApusError(.typeMismatch, "an integer product of \(a) and \(b)")
    }
    guard let left = a.dims, let right = b.dims else { return [typed(.int32, nil)] }
    return [typed(.int32, try MatMul.resultDims(left, right))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    MatMul().operations(inputs: inputs, outputs: outputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let a = try centred(try inputs.required(0), try inputs.optional(2), alongRows: true)
    let b = try centred(try inputs.required(1), try inputs.optional(3), alongRows: false)
    return [.tensor(try ReferenceProduct(a, b).evaluate())]
  }

  private func centred(_ tensor: Tensor, _ zero: Tensor?, alongRows: Bool) throws(ApusError) -> Tensor
  {
    let values = tensor.integers()
    let zeros = zero?.integers() ?? [0]
    guard zero?.dataType.isInteger ?? true else {
      throw ApusError(.typeMismatch, "the zero points are not integers")
    }
    let columns = tensor.shape.last ?? 1
    let rows = tensor.rank > 1 ? tensor.shape[tensor.rank - 2] : 1
    guard zeros.count == 1 || zeros.count == (alongRows ? rows : columns) else {
      throw ApusError(.typeMismatch, "\(zeros.count) zero points for \(tensor.type)")
    }
    let result = values.indices.map { index in
      let line = alongRows ? index / max(1, columns) % max(1, rows) : index % max(1, columns)
      return values[index] &- (zeros.count == 1 ? zeros[0] : zeros[line])
    }
    return try Tensor(result, .int32, shape: tensor.shape)
  }
}
