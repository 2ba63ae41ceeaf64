// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A regular part of an operand: operands 1 to 4 are starts, ends, axes and steps; ends are
/// exclusive, negative places count from the end, and places outside are moved inside.
public struct Slice: MovementOperator, DataDependentShape, ShapeValueOperator, PermutableOperator {
  public static let name = "Slice"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }

  public func shapeDecidingInputs(count: Int) -> [Int] { Array(1..<max(1, count)) }

  /// What is taken along one axis.
  private struct Range {
    var start: Int
    var step: Int
    var count: Int

    init(start: Int, end: Int, step: Int, size: Int) {
      func place(_ value: Int, _ low: Int, _ high: Int) -> Int {
        Swift.min(Swift.max(value < 0 ? value + size : value, low), high)
      }
      let low = step > 0 ? 0 : -1
      let first = place(start, Swift.max(low, 0), step > 0 ? size : Swift.max(0, size - 1))
      let last = place(end, low, step > 0 ? size : size - 1)
      let distance = step > 0 ? last - first : first - last
      let stride = Int(clamping: step.magnitude)
      count = distance <= 0 || size == 0 ? 0 : (distance - 1) / stride + 1
      self.start = first
      self.step = count <= 1 ? 1 : step
    }
  }

  private static func check(_ starts: Int, _ others: [Int?]) throws(ApusError) {
    guard others.allSatisfy({ $0 == nil || $0 == starts }) else {
      throw ApusError(.typeMismatch, "starts, ends, axes and steps have different lengths")
    }
  }

  private static func ranges(
    _ shape: [Int], _ starts: [Int], _ ends: [Int], _ axes: [Int]?, _ steps: [Int]?
  ) throws(ApusError) -> [Range] {
    try check(starts.count, [ends.count, axes?.count, steps?.count])
    let places = try Axis.resolved(axes ?? Array(starts.indices), rank: shape.count)
    var result = shape.map { Range(start: 0, end: $0, step: 1, size: $0) }
    for (index, axis) in places.enumerated() {
      let step = steps?[index] ?? 1
      guard step != 0 else { throw ApusError(.typeMismatch, "a slice cannot have step 0") }
      result[axis] = Range(start: starts[index], end: ends[index], step: step, size: shape[axis])
    }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    for index in 1..<Swift.max(3, inputs.count) where index < 3 || inputs.has(index) {
      try inputs.requireInteger(index, "slice parameters")
    }
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    let vector = try inputs.tensor(1)
    let length = inputs.dims(1)?.count ?? vector.shape?.first
    let axes = inputs.has(3) ? inputs.ints(3) : length.map { Array(0..<min(64, $0)) }
    guard let axes else {
      return [typed(type.dataType, dims.indices.map { inputs.freshDim("d\($0)") })]
    }
    let places = try Axis.resolved(axes, rank: dims.count)
    var result = dims
    guard let starts = inputs.dims(1), let ends = inputs.dims(2) else {
      for axis in places { result[axis] = inputs.freshDim("d\(axis)") }
      return [typed(type.dataType, result)]
    }
    let steps = inputs.has(4) ? inputs.ints(4) : places.map { _ in 1 }
    try Self.check(starts.count, [ends.count, places.count, steps?.count])
    for (index, axis) in places.enumerated() {
      guard let step = steps?[index] else {
        result[axis] = inputs.freshDim("d\(axis)")
        continue
      }
      guard step != 0 else { throw ApusError(.typeMismatch, "a slice cannot have step 0") }
      result[axis] =
        Self.size(dims[axis], starts[index], ends[index], step) ?? inputs.freshDim("d\(axis)")
    }
    return [typed(type.dataType, result)]
  }

  /// The size of a slice where it is certain up to symbols, taking places to lie inside the operand.
  private static func size(_ dim: Dim, _ start: Dim, _ end: Dim, _ step: Int) -> Dim? {
    if let size = dim.value, let s = start.value, let e = end.value {
      return Dim(Range(start: s, end: e, step: step, size: size).count)
    }
    if step == -1, let s = start.value, let e = end.value, s == -1 || s > 1 << 30, e < -1 << 30 {
      return dim
    }
    guard step > 0 else { return nil }
    let last: Dim
    if let e = end.value {
      if e > 1 << 30 { last = dim } else if e < 0 { last = dim + end } else { return nil }
    } else {
      guard end == dim else { return nil }
      last = dim
    }
    guard let s = start.value else { return nil }
    let length = s < 0 ? last - (dim + start) : last - start
    if let value = length.value, value <= 0 { return Dim(0) }
    return step == 1 ? length : (length + Dim(step - 1)).floorDivided(by: Dim(step))
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let ranges = try Self.ranges(
      shape, inputs.parameter(1, "starts"), inputs.parameter(2, "ends"),
      inputs.optionalParameter(3, "axes"), inputs.optionalParameter(4, "steps"))
    let strides = CopyPlan.rowMajorStrides(shape)
    let result = ranges.map(\.count)
    guard !result.contains(0) else { return CopyPlan(outputShapes: [result], copies: []) }
    return CopyPlan(
      outputShapes: [result],
      copies: [
        CopyPlan.Copy(
          input: 0, sizes: result,
          sourceOffset: zip(ranges, strides).reduce(0) { $0 + $1.0.start * $1.1 },
          sourceStrides: zip(ranges, strides).map { $0.step * $1 },
          targetStrides: CopyPlan.rowMajorStrides(result))
      ])
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard let dims = PointwiseReference.integerDims(inputs, 0), inputs.types[0]?.tensor?.rank == 1,
      let starts = inputs.ints(1), let ends = inputs.ints(2)
    else { return [nil] }
    let axes = inputs.has(3) ? inputs.ints(3) : [0]
    let steps = inputs.has(4) ? inputs.ints(4) : [1]
    guard let axes, let steps,
      let range = try? Self.ranges([dims.count], starts, ends, axes, steps).first
    else { return [nil] }
    return [(0..<range.count).map { dims[range.start + $0 * range.step] }]
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    let rank = permutation.count
    guard inputs.count > 2, inputs.types[0]?.tensor?.rank == rank,
      Axis.isPermutation(permutation, rank: rank),
      let starts = inputs.constant(1)?.ints(), let ends = inputs.constant(2)?.ints(),
      starts.count == ends.count, starts.count <= rank
    else { return nil }
    let axes = inputs.has(3) ? inputs.constant(3)?.ints() : Array(starts.indices)
    let steps = inputs.has(4) ? inputs.constant(4)?.ints() : starts.map { _ in 1 }
    guard let axes, let steps, axes.count == starts.count, steps.count == starts.count,
      let places = try? Axis.resolved(axes, rank: rank)
    else { return nil }
    var all = (
      starts: Array(repeating: 0, count: rank), ends: Array(repeating: Int.max, count: rank),
      steps: Array(repeating: 1, count: rank)
    )
    for (index, axis) in places.enumerated() {
      guard let place = permutation.firstIndex(of: axis) else { return nil }
      all.starts[place] = starts[index]
      all.ends[place] = ends[index]
      all.steps[place] = steps[index]
    }
    var replaced: [Int: Tensor] = [:]
    replaced[1] = try? Tensor.vector(all.starts)
    replaced[2] = try? Tensor.vector(all.ends)
    if inputs.has(3) { replaced[3] = try? Tensor.vector(Array(0..<rank)) }
    if inputs.has(4) {
      replaced[4] = try? Tensor.vector(all.steps)
    }
    return PermutedForm(
      op: self, permutesInput: inputs.types.indices.map { $0 == 0 }, replacedInputs: replaced)
  }
}
