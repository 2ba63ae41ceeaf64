// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The operands one after another along an axis.
public struct Concat: MovementOperator, PermutableOperator, ShapeValueOperator {
  public static let name = "Concat"
  public var axis: Int

  public init(axis: Int) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis")
  }

  public var attributes: Attributes { ["axis": .int(axis)] }

  public func movedInputs(count: Int) -> [Int] { Array(0..<count) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let first = try inputs.tensor(0)
    var result: [Dim]?
    var known = true
    for index in 0..<inputs.count {
      let type = try inputs.tensor(index)
      guard type.dataType == first.dataType else {
        throw ApusError(.typeMismatch, "\(first) and \(type) cannot be concatenated")
      }
      guard let dims = type.dims else {
        known = false
        continue
      }
      let at = try Axis.resolved(axis, rank: dims.count)
      guard var sum = result else {
        result = dims
        continue
      }
      guard sum.count == dims.count else {
        throw ApusError(.typeMismatch, "operand \(index) \(type) has another rank than \(first)")
      }
      for (place, dim) in dims.enumerated() where place != at && dim != sum[place] {
        if let a = dim.value, let b = sum[place].value, a != b {
          throw ApusError(
            .typeMismatch, "operand \(index) \(type) does not fit \(first) beside axis \(at)")
        }
        if dim.value != nil { sum[place] = dim }
      }
      sum[at] = sum[at] + dims[at]
      result = sum
    }
    if !known, let rank = result?.count {
      result?[try Axis.resolved(axis, rank: rank)] = inputs.freshDim("total")
    }
    return [typed(first.dataType, result)]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    var result = try shapes.required(0)
    let at = try Axis.resolved(axis, rank: result.count)
    var total = 0
    for index in shapes.indices {
      let shape = try shapes.required(index)
      guard shape.count == result.count,
        shape.indices.allSatisfy({ $0 == at || shape[$0] == result[$0] })
      else {
        throw ApusError(.typeMismatch, "operand \(index) \(shape) does not fit \(result)")
      }
      total &+= shape[at]
    }
    result[at] = total
    _ = try Tensor.checkedCount(result)
    let strides = CopyPlan.rowMajorStrides(result)
    var copies: [CopyPlan.Copy] = []
    var offset = 0
    for index in shapes.indices {
      let shape = try shapes.required(index)
      copies.append(
        CopyPlan.Copy(
          input: index, sizes: shape, sourceStrides: CopyPlan.rowMajorStrides(shape),
          targetOffset: offset &* strides[at], targetStrides: strides))
      offset &+= shape[at]
    }
    return CopyPlan(outputShapes: [result], copies: copies)
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    guard inputs.types.allSatisfy({ $0?.tensor?.rank == permutation.count }),
      let at = try? Axis.resolved(axis, rank: permutation.count),
      let place = permutation.firstIndex(of: at)
    else { return nil }
    return PermutedForm(
      op: Concat(axis: place), permutesInput: inputs.types.map { _ in true })
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    var result: [Dim] = []
    for index in 0..<inputs.count {
      guard let dims = PointwiseReference.integerDims(inputs, index) else { return [nil] }
      result += dims
    }
    return [result]
  }
}

/// The parts of an operand along an axis: of the sizes of operand 1, or in equal parts of which the
/// last may be smaller.
public struct Split: MovementOperator, PermutableOperator, DataDependentShape {
  public static let name = "Split"
  public var axis: Int
  /// The number of equal parts; nil: as many as the node has results (or operand 1 has elements).
  public var numOutputs: Int?

  public init(axis: Int = 0, numOutputs: Int? = nil) {
    self.axis = axis
    self.numOutputs = numOutputs
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
    numOutputs = try attributes.optionalInt("numOutputs")
  }

  public var attributes: Attributes {
    var result: Attributes = ["axis": .int(axis)]
    if let numOutputs { result["numOutputs"] = .int(numOutputs) }
    return result
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { count > 1 ? [1] : [] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    if inputs.has(1) { try inputs.requireInteger(1, "the sizes") }
    let count =
      inputs.has(1) ? inputs.dims(1)?.count ?? inputs.outputCount : parts(inputs.outputCount)
    guard count > 0, count <= 1 << 16 else {
      throw ApusError(.typeMismatch, "an operand cannot be split into \(count) parts")
    }
    guard let dims = type.dims else {
      return Array(repeating: typed(type.dataType, nil), count: count)
    }
    let at = try Axis.resolved(axis, rank: dims.count)
    var sizes: [Dim] = (0..<count).map { inputs.freshDim("part\($0)") }
    if inputs.has(1) {
      if let known = inputs.dims(1) { sizes = known }
      if let total = dims[at].value, let known = inputs.ints(1),
        known.contains(where: { $0 < 0 }) || known.reduce(0, &+) != total
      {
        throw ApusError(.typeMismatch, "the sizes \(known) do not add up to \(total)")
      }
    } else if let total = dims[at].value {
      sizes = Self.equal(total, count).map { Dim($0) }
    } else {
      sizes = Array(repeating: dims[at].floorDivided(by: Dim(count)), count: count)
      if sizes.reduce(0, +) != dims[at] { sizes = (0..<count).map { inputs.freshDim("part\($0)") } }
    }
    return sizes.map { size in
      var part = dims
      part[at] = size
      return typed(type.dataType, part)
    }
  }

  private func parts(_ outputs: Int) -> Int { numOutputs ?? outputs }

  private static func equal(_ total: Int, _ count: Int) -> [Int] {
    let size = (total + count - 1) / count
    return (0..<count).map { min(size, max(0, total - size * $0)) }
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let at = try Axis.resolved(axis, rank: shape.count)
    let sizes: [Int]
    if let given = try inputs.optionalParameter(1, "the sizes") {
      sizes = given
    } else {
      guard let numOutputs, numOutputs > 0, numOutputs <= 1 << 16 else {
        throw ApusError(.invalidAttribute, "Split needs sizes or a number of parts")
      }
      sizes = Self.equal(shape[at], numOutputs)
    }
    guard sizes.allSatisfy({ $0 >= 0 }), sizes.reduce(0, &+) == shape[at],
      sizes.allSatisfy({ $0 <= shape[at] })
    else {
      throw ApusError(.typeMismatch, "the sizes \(sizes) do not add up to \(shape[at])")
    }
    let strides = CopyPlan.rowMajorStrides(shape)
    var plan = CopyPlan(outputShapes: [], copies: [])
    var offset = 0
    for (index, size) in sizes.enumerated() {
      var part = shape
      part[at] = size
      plan.outputShapes.append(part)
      plan.copies.append(
        CopyPlan.Copy(
          input: 0, output: index, sizes: part, sourceOffset: offset &* strides[at],
          sourceStrides: strides, targetStrides: CopyPlan.rowMajorStrides(part)))
      offset += size
    }
    return plan
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    guard inputs.types.first??.tensor?.rank == permutation.count,
      let at = try? Axis.resolved(axis, rank: permutation.count),
      let place = permutation.firstIndex(of: at)
    else { return nil }
    return PermutedForm(
      op: Split(axis: place, numOutputs: numOutputs),
      permutesInput: inputs.types.indices.map { $0 == 0 })
  }
}

extension Concat: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.allSatisfy { $0?.isBatched ?? false } && axis != 0 && axis != -resultRank
  }
}
