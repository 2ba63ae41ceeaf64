// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The attribute with which a product says that its sums are of another type than its operands: bytes
/// are summed in 32-bit integers, BF16 numbers in single precision.
enum SumType {
  static func read(_ attributes: inout AttributeReader) throws(ApusError) -> DataType? {
    switch attributes.value("sum_type") {
    case nil: return nil
    case .type(let type): return type
    default:
      throw ApusError(.invalidAttribute, "attribute 'sum_type' is not an element type")
    }
  }

  /// The result's type.
  ///
  /// - Throws: `type-mismatch` when operands of these types have no such sums.
  static func check(_ a: DataType, _ b: DataType, _ sum: DataType?) throws(ApusError) -> DataType {
    guard let sum else {
      guard a == b else {
        throw ApusError(.typeMismatch, "the left side is \(a), the right side \(b)")
      }
      return a
    }
    let areFloats = a.isFloat && b.isFloat && sum.isFloat
    let areBytes =
      a.isInteger && b.isInteger && a.bitWidth <= 8 && b.bitWidth <= 8 && sum == .int32
    guard areFloats || areBytes else {
      throw ApusError(.typeMismatch, "products of \(a) and \(b) are not summed in \(sum)")
    }
    return sum
  }
}
