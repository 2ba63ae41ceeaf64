// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The elements of a sequence joined along an existing axis, or stacked along a new one (ONNX
/// `ConcatFromSequence`).
public struct ConcatFromSequence: Operator {
  public static let name = "ConcatFromSequence"
  public var axis: Int
  public var newAxis: Bool

  /// Creates the operator.
  public init(axis: Int, newAxis: Bool = false) {
    self.axis = axis
    self.newAxis = newAxis
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis")
    newAxis = try attributes.bool("new_axis", false)
  }

  public var attributes: Attributes { ["axis": .int(axis), "new_axis": .bool(newAxis)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let given = SequenceElement.opened(try inputs.sequenceElement(0), inputs)
    guard case .tensor(let element) = given else {
      throw ApusError(.typeMismatch, "the sequence's elements are not tensors")
    }
    guard let dims = element.dims else { return [typed(element.dataType, nil)] }
    let at = try Axis.resolved(axis, rank: dims.count + (newAxis ? 1 : 0))
    let open = inputs.freshDim("joined")
    // The elements may still differ from what is known of their type along the joined axis.
    var result = dims
    if newAxis { result.insert(open, at: at) } else { result[at] = open }
    return [typed(element.dataType, result)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let (items, element) = try inputs.sequence(0)
    guard let first = items.first else {
      throw ApusError(.execution, "an empty sequence has nothing to join")
    }
    guard case .tensor(let start) = first else {
      throw ApusError(.typeMismatch, "the sequence's elements are \(element), not tensors")
    }
    if newAxis {
      let at = try Axis.resolved(axis, rank: start.rank + 1)
      return [
        .tensor(try TensorStack.stack(items.compactMap(\.tensor), axis: at, emptyType: element))
      ]
    }
    let at = try Axis.resolved(axis, rank: start.rank)
    return try Concat(axis: at).evaluate(items)
  }
}

/// A tensor cut along an axis into the elements of a sequence (ONNX `SplitToSequence`): operands X and
/// the length of the pieces (one for all, or a vector); single slices when omitted, which lose the
/// axis unless `keepDims`.
public struct SplitToSequence: Operator {
  public static let name = "SplitToSequence"
  public var axis: Int
  public var keepDims: Bool

  /// Creates the operator.
  public init(axis: Int = 0, keepDims: Bool = true) {
    self.axis = axis
    self.keepDims = keepDims
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
    keepDims = try attributes.bool("keep_dims", true)
  }

  public var attributes: Attributes { ["axis": .int(axis), "keep_dims": .bool(keepDims)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard var dims = x.dims else { return [.sequence(typed(x.dataType, nil))] }
    let at = try Axis.resolved(axis, rank: dims.count)
    if inputs.has(1) {
      try inputs.requireInteger(1, "lengths")
      dims[at] = inputs.freshDim("piece")
    } else if keepDims {
      dims[at] = 1
    } else {
      dims.remove(at: at)
    }
    return [.sequence(typed(x.dataType, dims))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let at = try Axis.resolved(axis, rank: x.rank)
    let (outer, size, inner) = Axis.split(x.shape, at: at)
    let split = try inputs.optional(1)
    let lengths = try lengths(size, split)
    var items: [RuntimeValue] = []
    var start = 0
    for length in lengths {
      var shape = x.shape
      shape[at] = length
      var buffer = try ElementBuffer(x.dataType, shape: shape)
      if length > 0, inner > 0 {
        let begin = start
        buffer.copyRuns(from: x, length: length * inner, count: outer) { row in
          (target: row * length * inner, source: (row * size + begin) * inner)
        }
      }
      start += length
      var piece = try buffer.finished()
      if split == nil, !keepDims {
        shape.remove(at: at)
        piece = try piece.reshaped(shape)
      }
      items.append(.tensor(piece))
    }
    let element = try infer(InferenceInputs(types: inputs.map { $0?.type }))[0]
    guard case .sequence(let type) = element else { return [] }
    return [.sequence(items, of: type)]
  }

  private func lengths(_ size: Int, _ split: Tensor?) throws(ApusError) -> [Int] {
    guard let split else { return Array(repeating: 1, count: size) }
    guard split.dataType.isInteger, split.rank <= 1 else {
      throw ApusError(.typeMismatch, "lengths must be integers, they are \(split.type)")
    }
    let given = split.ints()
    if split.rank == 0 {
      guard given[0] > 0 else { throw ApusError(.execution, "pieces of length \(given[0])") }
      let whole = Array(repeating: given[0], count: size / given[0])
      return size % given[0] == 0 ? whole : whole + [size % given[0]]
    }
    var rest = size
    for length in given {
      guard length >= 0, length <= rest else {
        throw ApusError(.execution, "the lengths \(given) do not add up to \(size)")
      }
      rest -= length
    }
    guard rest == 0 else {
      throw ApusError(.execution, "the lengths \(given) do not add up to \(size)")
    }
    return given
  }
}
