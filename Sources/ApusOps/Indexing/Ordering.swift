// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Elements that can be compared, of any numeric type; NaN counts as greater than every number.
enum Keys {
  case real([Double])
  case whole([Int64])
  case unsigned([UInt64])

  init(_ x: Tensor) throws(ApusError) {
    guard x.dataType != .string, !x.dataType.isComplex else {
      throw ApusError(.typeMismatch, "elements of type \(x.dataType) have no order")
    }
    if x.dataType.isFloat {
      self = .real(x.doubles())
    } else if x.dataType == .uint64 {
      self = .unsigned(x.integers().map { UInt64(bitPattern: $0) })
    } else {
      self = .whole(x.integers())
    }
  }

  /// Whether element `a` comes before element `b` in ascending order.
  func less(_ a: Int, _ b: Int) -> Bool {
    switch self {
    case .real(let values):
      if values[a].isNaN { return false }
      return values[b].isNaN || values[a] < values[b]
    case .whole(let values): return values[a] < values[b]
    case .unsigned(let values): return values[a] < values[b]
    }
  }
}

/// The largest (or smallest) elements along an axis, as many as operand 1 says, and their places.
/// Of equal elements the one with the lower place comes first.
public struct TopK: Operator, DataDependentShape {
  public static let name = "TopK"
  public var axis: Int
  public var largest: Bool
  public var sorted: Bool

  public init(axis: Int = -1, largest: Bool = true, sorted: Bool = true) {
    self.axis = axis
    self.largest = largest
    self.sorted = sorted
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -1)
    largest = try attributes.bool("largest", true)
    sorted = try attributes.bool("sorted", true)
  }

  public var attributes: Attributes {
    ["axis": .int(axis), "largest": .bool(largest), "sorted": .bool(sorted)]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "the count")
    guard var dims = type.dims else { return [typed(type.dataType, nil), typed(.int64, nil)] }
    let at = try Axis.resolved(axis, rank: dims.count)
    let count = inputs.dims(1)?.first ?? inputs.freshDim("k")
    if let k = count.value, k < 0 || dims[at].value.map({ k > $0 }) ?? false {
      throw ApusError(
        .typeMismatch, "the \(k) first elements of axis \(at) of \(type) do not exist")
    }
    dims[at] = count
    return [typed(type.dataType, dims), typed(.int64, dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let at = try Axis.resolved(axis, rank: x.rank)
    let (outer, size, inner) = Axis.split(x.shape, at: at)
    guard let k = try inputs.allTensors().parameter(1, "the count").first, k >= 0, k <= size else {
      throw ApusError(.typeMismatch, "the count of TopK is no number in 0...\(size)")
    }
    let keys = try Keys(x)
    var shape = x.shape
    shape[at] = k
    var sources = Array(repeating: 0, count: try Tensor.checkedCount(shape))
    var places = Array(repeating: Int64(0), count: sources.count)
    for block in 0..<outer {
      for lane in 0..<inner {
        let base = block * size * inner + lane
        let order = (0..<size).sorted { a, b in
          let first = base + a * inner
          let second = base + b * inner
          if largest ? keys.less(second, first) : keys.less(first, second) { return true }
          if largest ? keys.less(first, second) : keys.less(second, first) { return false }
          return a < b
        }
        for rank in 0..<k {
          let target = (block * k + rank) * inner + lane
          sources[target] = base + order[rank] * inner
          places[target] = Int64(order[rank])
        }
      }
    }
    var values = try ElementBuffer(x.dataType, shape: shape)
    values.copy(from: x, count: sources.count) { ($0, sources[$0]) }
    return [.tensor(try values.finished()), .tensor(try Tensor(places, .int64, shape: shape))]
  }
}

/// The place of the largest or smallest element along an axis.
private enum Extremum {
  static func infer(_ inputs: InferenceInputs, _ axis: Int, _ keepDims: Bool) throws(ApusError)
    -> [ValueType]
  {
    guard var dims = try inputs.tensor(0).dims else { return [typed(.int64, nil)] }
    let at = try Axis.resolved(axis, rank: dims.count)
    if keepDims { dims[at] = 1 } else { dims.remove(at: at) }
    return [typed(.int64, dims)]
  }

  static func evaluate(
    _ inputs: [RuntimeValue?], _ axis: Int, _ keepDims: Bool, largest: Bool, last: Bool
  ) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let at = try Axis.resolved(axis, rank: x.rank)
    let (outer, size, inner) = Axis.split(x.shape, at: at)
    let keys = try Keys(x)
    var shape = x.shape
    if keepDims { shape[at] = 1 } else { shape.remove(at: at) }
    guard size > 0 || outer &* inner == 0 else {
      throw ApusError(.execution, "an empty axis has no largest or smallest element")
    }
    var result: [Int64] = []
    for block in 0..<outer {
      for lane in 0..<inner {
        let base = block * size * inner + lane
        var best = 0
        for index in 0..<size where index > 0 {
          let a = base + index * inner
          let b = base + best * inner
          let better = largest ? keys.less(b, a) : keys.less(a, b)
          let worse = largest ? keys.less(a, b) : keys.less(b, a)
          if better || (last && !worse) { best = index }
        }
        result.append(Int64(best))
      }
    }
    return [.tensor(try Tensor(result, .int64, shape: shape))]
  }
}

/// The place of the largest element along an axis: the first such place, or the last.
public struct ArgMax: Operator {
  public static let name = "ArgMax"
  public var axis: Int
  public var keepDims: Bool
  public var selectLastIndex: Bool

  public init(axis: Int = 0, keepDims: Bool = true, selectLastIndex: Bool = false) {
    self.axis = axis
    self.keepDims = keepDims
    self.selectLastIndex = selectLastIndex
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
    keepDims = try attributes.bool("keepDims", true)
    selectLastIndex = try attributes.bool("selectLastIndex", false)
  }

  public var attributes: Attributes {
    [
      "axis": .int(axis), "keepDims": .bool(keepDims), "selectLastIndex": .bool(selectLastIndex),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try Extremum.infer(inputs, axis, keepDims)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try Extremum.evaluate(inputs, axis, keepDims, largest: true, last: selectLastIndex)
  }
}

/// The place of the smallest element along an axis: the first such place, or the last.
public struct ArgMin: Operator {
  public static let name = "ArgMin"
  public var axis: Int
  public var keepDims: Bool
  public var selectLastIndex: Bool

  public init(axis: Int = 0, keepDims: Bool = true, selectLastIndex: Bool = false) {
    self.axis = axis
    self.keepDims = keepDims
    self.selectLastIndex = selectLastIndex
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
    keepDims = try attributes.bool("keepDims", true)
    selectLastIndex = try attributes.bool("selectLastIndex", false)
  }

  public var attributes: Attributes {
    [
      "axis": .int(axis), "keepDims": .bool(keepDims), "selectLastIndex": .bool(selectLastIndex),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try Extremum.infer(inputs, axis, keepDims)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try Extremum.evaluate(inputs, axis, keepDims, largest: false, last: selectLastIndex)
  }
}
