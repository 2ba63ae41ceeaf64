// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Quantised arithmetic.
  mutating func addQuantization() {
    op("QuantizeLinear", since: 10) { (node) throws(ApusError) in
      node.attributes.ignore("precision")
      return QuantizeLinear(
        axis: try node.attributes.int("axis", 1),
        blockSize: try node.attributes.int("block_size", 0),
        outputType: try node.optionalType("output_dtype") ?? .uint8,
        saturate: try node.attributes.flag("saturate", true))
    }
    op("DequantizeLinear", since: 10) { (node) throws(ApusError) in
      DequantizeLinear(
        axis: try node.attributes.int("axis", 1),
        blockSize: try node.attributes.int("block_size", 0),
        outputType: try node.optionalType("output_dtype"))
    }
    op("DynamicQuantizeLinear", since: 11) { _ in DynamicQuantizeLinear() }
    op("MatMulInteger", since: 10) { _ in MatMulInteger() }
    on("QLinearMatMul", since: 10) { (node) throws(ApusError) in
      let a = try node.dequantized(0, scale: 1, zeroPoint: 2)
      let b = try node.dequantized(3, scale: 4, zeroPoint: 5)
      let product = try node.emit(MatMul(), [a, b])
      return try node.result(
        QuantizeLinear(), [product, try node.operand(6), try node.operand(7)])
    }
    on("ConvInteger", since: 10) { (node) throws(ApusError) in
      // Sums of products of bytes are exact in double precision.
      let x = try node.shifted(0, zeroPoint: 2, isPerRow: false)
      let w = try node.shifted(1, zeroPoint: 3, isPerRow: true)
      let y = try node.emit(try node.convolution(), [x, w])
      return try node.result(Cast(to: .int32), [y])
    }
    on("QLinearConv", since: 10) { (node) throws(ApusError) in try node.quantizedConvolution() }
  }
}

extension NodeImport {
  /// An element type given by number, zero or absent for none.
  fileprivate func optionalType(_ name: String) throws(ApusError) -> DataType? {
    guard try attributes.int(name, 0) != 0 else { return nil }
    return try attributes.dataType(name)
  }

  /// The real numbers that a quantised operand stands for.
  fileprivate func dequantized(_ value: Int, scale: Int, zeroPoint: Int, axis: Int? = nil)
    throws(ApusError) -> ValueID
  {
    let rank = try tensorType(value).rank
    // A vector of scales holds one for every row of a left operand, for every channel of weights.
    let fallback = max(0, (rank ?? 2) - 2)
    return try emit(
      DequantizeLinear(axis: axis ?? fallback),
      [try operand(value), try operand(scale), optional(zeroPoint)])
  }

  /// An integer operand less its zero point, as double-precision numbers.
  fileprivate func shifted(_ index: Int, zeroPoint: Int, isPerRow: Bool) throws(ApusError)
    -> ValueID
  {
    let value = try emit(Cast(to: .float64), [try operand(index)])
    guard let zero = optional(zeroPoint) else { return value }
    var offset = try emit(Cast(to: .float64), [zero])
    if isPerRow, case .tensor(let type) = type(of: zero), type.rank == 1 {
      let ones = Array(repeating: 1, count: max(0, try rank(index) - 1))
      offset = try emit(Reshape(), [offset, try vector([-1] + ones)])
    }
    return try emit(Sub(), [value, offset])
  }

  fileprivate func quantizedConvolution() throws(ApusError) -> [ValueID] {
    let x = try dequantized(0, scale: 1, zeroPoint: 2, axis: 1)
    let w = try dequantized(3, scale: 4, zeroPoint: 5, axis: 0)
    let convolution = try convolution(weights: 3)
    var bias: ValueID?
    if let b = optional(8) {
      // The bias is in units of both scales.
      let scale = try emit(Mul(), [try operand(1), try operand(4)])
      bias = try emit(Mul(), [try emit(Cast(to: .float32), [b]), scale])
    }
    let y = try emit(convolution, [x, w, bias])
    return try result(QuantizeLinear(), [y, try operand(6), try operand(7)])
  }
}
