// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

extension Array where Element == RuntimeValue? {
  /// The tensor at position `index`.
  ///
  /// - Throws: `type-mismatch` when it is missing or no tensor.
  func required(_ index: Int) throws(ApusError) -> Tensor {
    guard index < count, let value = self[index] else {
      throw ApusError(.typeMismatch, "operand \(index) is missing")
    }
    guard let tensor = value.tensor else {
      throw ApusError(.typeMismatch, "operand \(index) is \(value.type), expected a tensor")
    }
    return tensor
  }

  /// The tensor at position `index`, nil when omitted.
  func optional(_ index: Int) throws(ApusError) -> Tensor? {
    guard index < count, self[index] != nil else { return nil }
    return try required(index)
  }

  /// All operands as tensors; nil where omitted.
  func allTensors() throws(ApusError) -> [Tensor?] {
    var result: [Tensor?] = []
    for index in indices { result.append(try optional(index)) }
    return result
  }
}

extension Array where Element == Tensor? {
  /// The tensor at position `index`, nil when omitted or beyond the end.
  func at(_ index: Int) -> Tensor? { index < count ? self[index] : nil }
}

/// Axis arithmetic.
enum Axis {
  /// An axis in `0..<rank` from one in `-rank..<rank`.
  static func resolved(_ axis: Int, rank: Int) throws(ApusError) -> Int {
    guard axis >= -rank, axis < rank else {
      throw ApusError(.typeMismatch, "axis \(axis) does not exist in a tensor of rank \(rank)")
    }
    return axis < 0 ? axis + rank : axis
  }

  /// Distinct axes in `0..<rank`.
  static func resolved(_ axes: [Int], rank: Int) throws(ApusError) -> [Int] {
    var result: [Int] = []
    for axis in axes {
      let resolved = try resolved(axis, rank: rank)
      guard !result.contains(resolved) else {
        throw ApusError(.typeMismatch, "axis \(axis) is named twice in \(axes)")
      }
      result.append(resolved)
    }
    return result
  }

  /// Whether `order` holds every number of `0..<rank` once.
  static func isPermutation(_ order: [Int], rank: Int) -> Bool {
    order.count == rank && order.sorted() == Array(0..<rank)
  }

  /// The sizes before, at and after an axis, for loops over one axis.
  static func split(_ shape: [Int], at axis: Int) -> (outer: Int, size: Int, inner: Int) {
    (
      shape[..<axis].reduce(1, &*), shape[axis], shape[(axis + 1)...].reduce(1, &*)
    )
  }
}

extension InferenceInputs {
  /// Fails unless operand `index` holds integers.
  func requireInteger(_ index: Int, _ what: String) throws(ApusError) {
    let type = try tensor(index).dataType
    guard type.isInteger else {
      throw ApusError(.typeMismatch, "\(what) must be integers, operand \(index) is \(type)")
    }
  }
}

/// A tensor type as a value type.
func typed(_ dataType: DataType, _ dims: [Dim]?) -> ValueType {
  .tensor(TensorType(dataType, dims))
}

extension AttributeReader {
  /// One of the cases of an enumeration, by its raw value.
  mutating func choice<Choice: RawRepresentable>(_ name: String, _ fallback: Choice)
    throws(ApusError) -> Choice where Choice.RawValue == String
  {
    let text = try string(name, fallback.rawValue)
    guard let choice = Choice(rawValue: text) else {
      throw ApusError(.invalidAttribute, "attribute '\(name)' cannot be '\(text)'")
    }
    return choice
  }

  /// A list of integers that may be absent.
  mutating func optionalInts(_ name: String) throws(ApusError) -> [Int]? {
    switch value(name) {
    case .ints(let values): return values
    case nil: return nil
    default:
      throw ApusError(.invalidAttribute, "attribute '\(name)' is not a list of integers")
    }
  }

  /// An integer that may be absent.
  mutating func optionalInt(_ name: String) throws(ApusError) -> Int? {
    switch value(name) {
    case .int(let value): return value
    case nil: return nil
    default: throw ApusError(.invalidAttribute, "attribute '\(name)' is not an integer")
    }
  }
}
