// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Checks of indices into tensors.
enum Indices {
  /// Index values of a tensor, brought from `-size..<size` into `0..<size`.
  static func resolved(_ tensor: Tensor, size: Int) throws(ApusError) -> [Int] {
    guard tensor.dataType.isInteger else {
      throw ApusError(.typeMismatch, "indices must be integers, not \(tensor.dataType)")
    }
    var result = tensor.ints()
    for place in result.indices { result[place] = try resolved(result[place], size: size) }
    return result
  }

  /// One index brought from `-size..<size` into `0..<size`.
  static func resolved(_ index: Int, size: Int) throws(ApusError) -> Int {
    guard index >= -size, index < size else {
      throw ApusError(
        .execution, "index \(index) is outside an axis of size \(size)",
        hint: "check the index values in the input")
    }
    return index < 0 ? index + size : index
  }
}

/// The slices of operand 0 along an axis that operand 1 names.
public struct Gather: Operator, ShapeValueOperator {
  public static let name = "Gather"
  public var axis: Int

  public init(axis: Int = 0) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
  }

  public var attributes: Attributes { ["axis": .int(axis)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "indices")
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    let at = try Axis.resolved(axis, rank: dims.count)
    guard let places = try inputs.tensor(1).dims else { return [typed(type.dataType, nil)] }
    return [typed(type.dataType, dims[..<at] + places + dims[(at + 1)...])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let data = try inputs.required(0)
    let indices = try inputs.required(1)
    let at = try Axis.resolved(axis, rank: data.rank)
    let (outer, size, inner) = Axis.split(data.shape, at: at)
    let shape = Array(data.shape[..<at] + indices.shape + data.shape[(at + 1)...])
    let places = try Indices.resolved(indices, size: size)
    var result = try ElementBuffer(data.dataType, shape: shape)
    result.copyRuns(from: data, length: inner, count: outer &* places.count) { run in
      let block = run / places.count
      return (run &* inner, (block &* size &+ places[run % places.count]) &* inner)
    }
    return [.tensor(try result.finished())]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard axis == 0 || axis == -1, let dims = PointwiseReference.integerDims(inputs, 0),
      inputs.types[0]?.tensor?.rank == 1, let places = inputs.ints(1),
      inputs.types[1]?.tensor?.rank ?? 2 <= 1
    else { return [nil] }
    var result: [Dim] = []
    for place in places {
      guard let index = try? Indices.resolved(place, size: dims.count) else { return [nil] }
      result.append(dims[index])
    }
    return [result]
  }
}

/// The elements of operand 0 whose place along an axis operand 1 gives; the other coordinates are
/// those of the index.
public struct GatherElements: Operator {
  public static let name = "GatherElements"
  public var axis: Int

  public init(axis: Int = 0) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
  }

  public var attributes: Attributes { ["axis": .int(axis)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "indices")
    let places = try inputs.tensor(1).dims
    if let rank = type.rank {
      _ = try Axis.resolved(axis, rank: rank)
      guard places == nil || places?.count == rank else {
        throw ApusError(.typeMismatch, "the indices have another rank than \(type)")
      }
    }
    return [typed(type.dataType, places)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let data = try inputs.required(0)
    let indices = try inputs.required(1)
    let sources = try Self.places(data.shape, indices, axis: axis)
    var result = try ElementBuffer(data.dataType, shape: indices.shape)
    result.copy(from: data, count: sources.count) { ($0, sources[$0]) }
    return [.tensor(try result.finished())]
  }

  /// The positions in a tensor of shape `shape` that the indices name, in index order.
  static func places(_ shape: [Int], _ indices: Tensor, axis: Int) throws(ApusError) -> [Int] {
    let at = try Axis.resolved(axis, rank: shape.count)
    guard indices.rank == shape.count,
      shape.indices.allSatisfy({ $0 == at || indices.shape[$0] <= shape[$0] })
    else {
      throw ApusError(.typeMismatch, "indices of shape \(indices.shape) do not fit \(shape)")
    }
    let values = try Indices.resolved(indices, size: shape[at])
    let strides = CopyPlan.rowMajorStrides(shape)
    var position = Array(repeating: 0, count: shape.count)
    var result: [Int] = []
    result.reserveCapacity(values.count)
    for value in values {
      var place = value * strides[at]
      for axis in shape.indices where axis != at { place += position[axis] * strides[axis] }
      result.append(place)
      for axis in shape.indices.reversed() {
        position[axis] += 1
        if position[axis] < indices.shape[axis] { break }
        position[axis] = 0
      }
    }
    return result
  }
}

/// The slices of operand 0 that the index vectors along the last axis of operand 1 name; the first
/// `batchDims` axes are common to both.
public struct GatherND: Operator {
  public static let name = "GatherND"
  public var batchDims: Int

  public init(batchDims: Int = 0) { self.batchDims = batchDims }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    batchDims = try attributes.int("batchDims", 0)
  }

  public var attributes: Attributes { ["batchDims": .int(batchDims)] }

  private func check(_ rank: Int, _ indexRank: Int, _ depth: Int) throws(ApusError) {
    guard batchDims >= 0, indexRank > batchDims, depth >= 0, depth <= rank,
      batchDims + depth <= rank
    else {
      throw ApusError(
        .typeMismatch,
        "index vectors of length \(depth) after \(batchDims) axes do not fit rank \(rank)")
    }
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "indices")
    guard let dims = type.dims, let places = try inputs.tensor(1).dims,
      let depth = places.last?.value
    else { return [typed(type.dataType, nil)] }
    try check(dims.count, places.count, depth)
    return [typed(type.dataType, places.dropLast() + dims[(batchDims + depth)...])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let data = try inputs.required(0)
    let indices = try inputs.required(1)
    let depth = indices.shape.last ?? -1
    try check(data.rank, indices.rank, depth)
    guard data.shape.prefix(batchDims) == indices.shape.prefix(batchDims) else {
      throw ApusError(
        .typeMismatch, "\(data.shape) and \(indices.shape) differ in the first \(batchDims) axes")
    }
    let shape = Array(indices.shape.dropLast() + data.shape[(batchDims + depth)...])
    let batches = data.shape.prefix(batchDims).reduce(1, &*)
    let inner = data.shape[(batchDims + depth)...].reduce(1, &*)
    let entries = indices.shape.dropLast().reduce(1, &*)
    let starts = try Self.starts(
      Array(data.shape[batchDims..<(batchDims + depth)]), indices, count: entries)
    let perBatch = batches == 0 ? 0 : entries / batches
    let block = data.shape[batchDims...].reduce(1, &*)
    var result = try ElementBuffer(data.dataType, shape: shape)
    result.copyRuns(from: data, length: inner, count: entries) { entry in
      (entry &* inner, (entry / perBatch) &* block &+ starts[entry] &* inner)
    }
    return [.tensor(try result.finished())]
  }

  /// For each index vector, the row-major position it names in the indexed axes.
  static func starts(_ sizes: [Int], _ indices: Tensor, count: Int) throws(ApusError) -> [Int] {
    guard indices.dataType.isInteger else {
      throw ApusError(.typeMismatch, "indices must be integers, not \(indices.dataType)")
    }
    let values = indices.ints()
    var result: [Int] = []
    result.reserveCapacity(count)
    for entry in 0..<count {
      var place = 0
      for (axis, size) in sizes.enumerated() {
        let index = try Indices.resolved(values[entry * sizes.count + axis], size: size)
        place = place * size + index
      }
      result.append(place)
    }
    return result
  }
}

extension Gather: BatchwiseOperator {
  /// Rows of a table, named by the batch, or the same rows of every member.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard operands.count == 2, let table = operands[0], let indices = operands[1] else { return false }
    if table.isBatched && !indices.isBatched { return axis != 0 && axis != -table.rank }
    return !table.isBatched && indices.isBatched && axis == 0
  }
}
