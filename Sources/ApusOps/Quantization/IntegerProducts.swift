// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Integer convolution with zero points, 32-bit result (ONNX `ConvInteger`): operands X, W, and
/// optional zero points of X (one) and W (one, or one for each output channel).
public struct ConvInteger: CostedOperator {
  public static let name = "ConvInteger"
  /// The convolution's attributes.
  public var convolution: Conv

  /// Creates the operator.
  public init(_ convolution: Conv = Conv()) { self.convolution = convolution }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    convolution = try Conv(reading: &attributes)
  }

  public var attributes: Attributes { convolution.attributes }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [.tensor(try IntegerProducts.convolution(convolution, inputs, x: 0, w: 1, result: .int32))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    convolution.operations(inputs: inputs, outputs: outputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try IntegerProducts.centred(try inputs.required(0), try inputs.optional(2), axis: nil)
    let w = try inputs.required(1)
    let weights = try IntegerProducts.centred(
      w, try inputs.optional(3), axis: convolution.isChannelsLast ? w.rank - 1 : 0)
    let sums = try IntegerProducts.sums(convolution, x, weights)
    return [.tensor(try Tensor(sums.integers(), .int32, shape: sums.shape))]
  }
}

/// Convolution of quantised tensors with a quantised result (ONNX `QLinearConv`): operands X, its
/// scale and zero point, W, its scale and zero point (one, or one for each output channel), the
/// result's scale and zero point, and an optional `int32` bias in units of both scales.
public struct QLinearConv: CostedOperator {
  public static let name = "QLinearConv"
  /// The convolution's attributes.
  public var convolution: Conv

  /// Creates the operator.
  public init(_ convolution: Conv = Conv()) { self.convolution = convolution }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    convolution = try Conv(reading: &attributes)
  }

  public var attributes: Attributes { convolution.attributes }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(7).dataType
    guard type.isInteger else {
      throw ApusError(.typeMismatch, "the result's zero point is of type \(type)")
    }
    return [.tensor(try IntegerProducts.convolution(convolution, inputs, x: 0, w: 3, result: type))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard inputs.count > 3 else { return 0 }
    return convolution.operations(inputs: [inputs[0], inputs[3]], outputs: outputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let w = try inputs.required(3)
    let channelAxis = convolution.isChannelsLast ? w.rank - 1 : 0
    let x = try IntegerProducts.centred(try inputs.required(0), try inputs.required(2), axis: nil)
    let weights = try IntegerProducts.centred(w, try inputs.required(5), axis: channelAxis)
    var sums = try IntegerProducts.sums(convolution, x, weights).doubles()
    guard let type = inferred[0].tensor, let shape = type.shape else {
      throw ApusError(.typeMismatch, "the operands do not fit")
    }
    let axis = convolution.isChannelsLast ? shape.count - 1 : 1
    let (_, channels, inner) = Axis.split(shape, at: axis)
    if let bias = try inputs.optional(8)?.doubles() {
      guard bias.count == channels else {
        throw ApusError(.typeMismatch, "\(bias.count) bias values for \(channels) channels")
      }
      for index in sums.indices { sums[index] += bias[index / inner % channels] }
    }
    let scales = try inputs.required(4).doubles()
    guard scales.count == 1 || scales.count == channels else {
      throw ApusError(.typeMismatch, "\(scales.count) scales for \(channels) channels")
    }
    let factor = try IntegerProducts.one(inputs, 1) / IntegerProducts.one(inputs, 6)
    for index in sums.indices {
      sums[index] *= factor * (scales.count == 1 ? scales[0] : scales[index / inner % channels])
    }
    return [
      .tensor(
        try IntegerProducts.requantised(
          sums, zero: IntegerProducts.one(inputs, 7), type.dataType, shape: shape))
    ]
  }
}

/// Product of quantised matrices with a quantised result (ONNX `QLinearMatMul`): operands A, its scale
/// and zero point (one, or one for each row), B, its scale and zero point (one, or one for each
/// column), the result's scale and zero point.
public struct QLinearMatMul: CostedOperator, PlainOperator {
  public static let name = "QLinearMatMul"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let a = try inputs.tensor(0)
    let b = try inputs.tensor(3)
    let type = try inputs.tensor(7).dataType
    guard a.dataType.isInteger, b.dataType.isInteger, type.isInteger else {
      throw ApusError(.typeMismatch, "a quantised product of \(a) and \(b) as \(type)")
    }
    guard let left = a.dims, let right = b.dims else { return [typed(type, nil)] }
    return [typed(type, try MatMul.resultDims(left, right))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    MatMul().operations(inputs: inputs, outputs: outputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    guard let type = inferred[0].tensor?.dataType else { return [] }
    let a = try inputs.required(0)
    let b = try inputs.required(3)
    // Scaled before they are multiplied: the factors of rows and columns leave the sum.
    let left = try scaled(a, inputs, 1, a.rank > 1 ? a.rank - 2 : nil)
    let right = try scaled(b, inputs, 4, b.rank > 1 ? b.rank - 1 : nil)
    let product = try ReferenceProduct(left.whole, right.whole).evaluate()
    var values = product.doubles()
    let rowAxis = a.rank > 1 ? product.rank - (b.rank > 1 ? 2 : 1) : nil
    try multiply(&values, product.shape, left.scales, rowAxis)
    try multiply(&values, product.shape, right.scales, b.rank > 1 ? product.rank - 1 : nil)
    let scale = try IntegerProducts.one(inputs, 6)
    for index in values.indices { values[index] /= scale }
    return [
      .tensor(
        try IntegerProducts.requantised(
          values, zero: IntegerProducts.one(inputs, 7), type, shape: product.shape))
    ]
  }

  private func scaled(
    _ tensor: Tensor, _ inputs: [RuntimeValue?], _ scale: Int, _ axis: Int?
  ) throws(ApusError) -> (whole: Tensor, scales: [Double]) {
    let centred = try IntegerProducts.centred(tensor, try inputs.required(scale + 1), axis: axis)
    return (
      try Tensor(centred.integers(), .int64, shape: centred.shape),
      try inputs.required(scale).doubles()
    )
  }

  private func multiply(_ values: inout [Double], _ shape: [Int], _ factors: [Double], _ axis: Int?)
    throws(ApusError)
  {
    if factors.count == 1 {
      for index in values.indices { values[index] *= factors[0] }
      return
    }
    guard let axis, axis >= 0, axis < shape.count, factors.count == shape[axis] else {
      throw ApusError(.typeMismatch, "\(factors.count) scales for a result of shape \(shape)")
    }
    let (_, size, inner) = Axis.split(shape, at: axis)
    for index in values.indices { values[index] *= factors[index / inner % size] }
  }
}

/// Steps that quantised products share.
enum IntegerProducts {
  /// The type of a convolution of integers.
  static func convolution(
    _ op: Conv, _ inputs: InferenceInputs, x: Int, w: Int, result: DataType
  ) throws(ApusError) -> TensorType {
    let image = try inputs.tensor(x)
    let weights = try inputs.tensor(w)
    guard image.dataType.isInteger, weights.dataType.isInteger else {
      throw ApusError(.typeMismatch, "an integer convolution of \(image) with \(weights)")
    }
    var types = inputs
    types.types = [typed(.float64, image.dims), typed(.float64, weights.dims)]
    types.constants = []
    types.symbolic = []
    return TensorType(result, try op.infer(types).first?.tensor?.dims)
  }

  /// A tensor less its zero points (none: zero; one; or one for each place along `axis`), as `float64`,
  /// which holds them exactly.
  static func centred(_ tensor: Tensor, _ zero: Tensor?, axis: Int?) throws(ApusError) -> Tensor {
    var values = tensor.doubles()
    let zeros = zero?.doubles() ?? [0]
    if zeros.count == 1 {
      for index in values.indices { values[index] -= zeros[0] }
    } else {
      guard let axis, axis < tensor.rank, zeros.count == tensor.shape[axis] else {
        throw ApusError(.typeMismatch, "\(zeros.count) zero points for \(tensor.type)")
      }
      let (_, size, inner) = Axis.split(tensor.shape, at: axis)
      for index in values.indices { values[index] -= zeros[index / inner % size] }
    }
    return try Tensor(values, .float64, shape: tensor.shape)
  }

  /// The sums of a convolution.
  static func sums(_ op: Conv, _ x: Tensor, _ w: Tensor) throws(ApusError) -> Tensor {
    guard let result = try op.evaluate([.tensor(x), .tensor(w)]).first?.tensor else {
      throw ApusError(.internalError, "a convolution without a result")
    }
    return result
  }

  /// The one number that operand `index` holds.
  static func one(_ inputs: [RuntimeValue?], _ index: Int) throws(ApusError) -> Double {
    let tensor = try inputs.required(index)
    guard tensor.count == 1, tensor.dataType != .string else {
      throw ApusError(.typeMismatch, "operand \(index) must be one number, it is \(tensor.type)")
    }
    return tensor.doubles()[0]
  }

  /// `saturate(round(x) + zero)`.
  static func requantised(
    _ values: [Double], zero: Double, _ type: DataType, shape: [Int]
  ) throws(ApusError) -> Tensor {
    let range = type.integerRange
    return try Tensor(
      values.map { value in
        let rounded = Int64(clamping: value.rounded(.toNearestOrEven) + zero)
        return min(range.upperBound, max(range.lowerBound, rounded))
      }, type, shape: shape)
  }
}
