// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The running sums along the axis in operand 1.
public struct CumSum: Operator {
  public static let name = "CumSum"
  /// Whether the element itself is left out.
  public var exclusive: Bool
  /// Whether sums run from the end.
  public var reverse: Bool
  /// Whether elements are multiplied instead of added (ONNX `CumProd`).
  public var multiplies: Bool

  public init(exclusive: Bool = false, reverse: Bool = false, multiplies: Bool = false) {
    self.exclusive = exclusive
    self.reverse = reverse
    self.multiplies = multiplies
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    exclusive = try attributes.bool("exclusive", false)
    reverse = try attributes.bool("reverse", false)
    multiplies = try attributes.bool("multiplies", false)
  }

  public var attributes: Attributes {
    ["exclusive": .bool(exclusive), "reverse": .bool(reverse), "multiplies": .bool(multiplies)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try inputs.requireInteger(1, "the axis")
    let type = try inputs.tensor(0)
    guard type.dataType.isFloat || type.dataType.isInteger else {
      throw ApusError(.typeMismatch, "elements of type \(type.dataType) have no sum")
    }
    return [.tensor(type)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    guard let axis = try inputs.allTensors().parameter(1, "the axis").first,
      x.dataType.isFloat || x.dataType.isInteger
    else { throw ApusError(.typeMismatch, "CumSum takes numbers and an axis") }
    let at = try Axis.resolved(axis, rank: x.rank)
    let (outer, size, inner) = Axis.split(x.shape, at: at)
    if x.dataType.isFloat {
      let sums =
        multiplies
        ? scan(x.doubles(), 1, outer, size, inner, *) : scan(x.doubles(), 0, outer, size, inner, +)
      return [.tensor(try Tensor(sums, x.dataType, shape: x.shape))]
    }
    let sums =
      multiplies
      ? scan(x.integers(), 1, outer, size, inner, &*) : scan(x.integers(), 0, outer, size, inner, &+)
    return [.tensor(try Tensor(sums, x.dataType, shape: x.shape))]
  }

  private func scan<Number>(
    _ values: [Number], _ zero: Number, _ outer: Int, _ size: Int, _ inner: Int,
    _ add: (Number, Number) -> Number
  ) -> [Number] {
    var result = values
    for block in 0..<outer {
      for lane in 0..<inner {
        var sum = zero
        for step in 0..<size {
          let place = (block * size + (reverse ? size - 1 - step : step)) * inner + lane
          let next = add(sum, values[place])
          result[place] = exclusive ? sum : next
          sum = next
        }
      }
    }
    return result
  }
}

/// For each batch entry the first elements of the time axis, as many as operand 1 says, in reverse.
public struct ReverseSequence: Operator {
  public static let name = "ReverseSequence"
  public var batchAxis: Int
  public var timeAxis: Int

  public init(batchAxis: Int = 1, timeAxis: Int = 0) {
    self.batchAxis = batchAxis
    self.timeAxis = timeAxis
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    batchAxis = try attributes.int("batchAxis", 1)
    timeAxis = try attributes.int("timeAxis", 0)
  }

  public var attributes: Attributes { ["batchAxis": .int(batchAxis), "timeAxis": .int(timeAxis)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try inputs.requireInteger(1, "lengths")
    let type = try inputs.tensor(0)
    if let rank = type.rank { _ = try Axis.resolved([batchAxis, timeAxis], rank: rank) }
    return [.tensor(type)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let lengths = try inputs.allTensors().parameter(1, "lengths")
    let axes = try Axis.resolved([batchAxis, timeAxis], rank: x.rank)
    let batches = x.shape[axes[0]]
    let times = x.shape[axes[1]]
    guard lengths.count == batches, lengths.allSatisfy({ $0 >= 0 && $0 <= times }) else {
      throw ApusError(.typeMismatch, "the lengths \(lengths) do not fit \(x.shape)")
    }
    let strides = CopyPlan.rowMajorStrides(x.shape)
    var result = try ElementBuffer(x.dataType, shape: x.shape)
    result.copy(from: x, count: x.count) { place in
      let time = place / strides[axes[1]] % times
      let length = lengths[place / strides[axes[0]] % batches]
      guard time < length else { return (place, place) }
      return (place, place + (length - 1 - 2 * time) * strides[axes[1]])
    }
    return [.tensor(try result.finished())]
  }
}

/// The different slices along an axis (elements without one): the slices, the place where each first
/// occurs, for each original slice its place among the different ones, and how often each occurs.
public struct Unique: Operator, DataDependentShape {
  public static let name = "Unique"
  public var axis: Int?
  public var sorted: Bool

  public init(axis: Int? = nil, sorted: Bool = true) {
    self.axis = axis
    self.sorted = sorted
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.optionalInt("axis")
    sorted = try attributes.bool("sorted", true)
  }

  public var attributes: Attributes {
    var result: Attributes = ["sorted": .bool(sorted)]
    if let axis { result["axis"] = .int(axis) }
    return result
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    let different = inputs.freshDim("unique")
    var dims = type.dims
    var original = inputs.freshDim("original")
    if let axis, let rank = dims?.count {
      let at = try Axis.resolved(axis, rank: rank)
      original = dims?[at] ?? original
      dims?[at] = different
    } else if axis == nil {
      original = dims?.reduce(1, *) ?? original
      dims = [different]
    }
    return [
      typed(type.dataType, dims), typed(.int64, [different]), typed(.int64, [original]),
      typed(.int64, [different]),
    ]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let shape = axis == nil ? [x.count] : x.shape
    let at = try Axis.resolved(axis ?? 0, rank: shape.count)
    let (outer, size, inner) = Axis.split(shape, at: at)
    let texts = x.strings
    let keys = x.dataType == .string ? nil : try Keys(x)
    func less(_ a: Int, _ b: Int) -> Bool {
      for block in 0..<outer {
        for lane in 0..<inner {
          let first = (block * size + a) * inner + lane
          let second = (block * size + b) * inner + lane
          if let keys {
            if keys.less(first, second) { return true }
            if keys.less(second, first) { return false }
          } else if texts[first] != texts[second] {
            return texts[first] < texts[second]
          }
        }
      }
      return false
    }
    let order = (0..<size).sorted { less($0, $1) || (!less($1, $0) && $0 < $1) }
    var groups: [[Int]] = []
    for place in order {
      if let last = groups.last, !less(last[0], place) {
        groups[groups.count - 1].append(place)
      } else {
        groups.append([place])
      }
    }
    if !sorted { groups.sort { $0[0] < $1[0] } }
    var inverse = Array(repeating: Int64(0), count: size)
    for (group, members) in groups.enumerated() { for m in members { inverse[m] = Int64(group) } }
    var resultShape = shape
    resultShape[at] = groups.count
    let count = groups.count
    var values = try ElementBuffer(x.dataType, shape: resultShape)
    values.copyRuns(from: x, length: inner, count: outer &* count) { run in
      (run &* inner, (run / count &* size &+ groups[run % count][0]) &* inner)
    }
    return [
      .tensor(try values.finished()),
      .tensor(try Tensor(groups.map { Int64($0[0]) }, .int64, shape: [count])),
      .tensor(try Tensor(inverse, .int64, shape: [size])),
      .tensor(try Tensor(groups.map { Int64($0.count) }, .int64, shape: [count])),
    ]
  }
}
