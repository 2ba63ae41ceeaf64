// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The same elements in the shape of operand 1; -1 stands for what is left, 0 for the operand's own
/// size (for zero itself when `allowZero`).
public struct Reshape: MovementOperator, DataDependentShape, ShapeValueOperator {
  public static let name = "Reshape"
  public var allowZero: Bool

  public init(allowZero: Bool = false) { self.allowZero = allowZero }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    allowZero = try attributes.bool("allowZero", false)
  }

  public var attributes: Attributes { allowZero ? ["allowZero": .bool(true)] : [:] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "the shape")
    guard let wanted = inputs.dims(1) else {
      guard let length = try inputs.tensor(1).shape?.first, length <= 64 else {
        return [typed(type.dataType, nil)]
      }
      return [typed(type.dataType, (0..<length).map { inputs.freshDim("d\($0)") })]
    }
    if let shape = type.shape, let sizes = inputs.ints(1) {
      return [typed(type.dataType, try resolve(shape, sizes).map { Dim($0) })]
    }
    var result = wanted
    var open: Int?
    for (index, dim) in wanted.enumerated() {
      if dim == 0 && !allowZero {
        guard let dims = type.dims else {
          result[index] = inputs.freshDim("d\(index)")
          continue
        }
        guard index < dims.count else {
          throw ApusError(.typeMismatch, "\(type) has no axis \(index) to keep the size of")
        }
        result[index] = dims[index]
      } else if let value = dim.value, value < 0 {
        guard value == -1, open == nil else {
          throw ApusError(.typeMismatch, "\(wanted) is no shape to reshape to")
        }
        open = index
      }
    }
    if let open {
      result[open] = 1
      if let dims = type.dims {
        result[open] = Self.quotient(dims, result)
      } else {
        result[open] = inputs.freshDim("d\(open)")
      }
    }
    return [typed(type.dataType, result)]
  }

  /// The product of `total` over the product of `parts`, equal sizes cancelled first.
  private static func quotient(_ total: [Dim], _ parts: [Dim]) -> Dim {
    var rest = total
    var divisor = Dim(1)
    for part in parts {
      if let index = rest.firstIndex(of: part) {
        rest.remove(at: index)
      } else {
        divisor = divisor * part
      }
    }
    return rest.reduce(Dim(1), *).floorDivided(by: divisor)
  }

  private func resolve(_ shape: [Int], _ wanted: [Int]) throws(ApusError) -> [Int] {
    let total = try Tensor.checkedCount(shape)
    var result = wanted
    var open: Int?
    for (index, size) in wanted.enumerated() {
      if size == 0 && !allowZero {
        guard index < shape.count else {
          throw ApusError(.typeMismatch, "\(shape) has no axis \(index) to keep the size of")
        }
        result[index] = shape[index]
      } else if size < 0 {
        guard size == -1, open == nil else {
          throw ApusError(.typeMismatch, "\(wanted) is no shape to reshape to")
        }
        open = index
        result[index] = 1
      }
    }
    if let open {
      let rest = try Tensor.checkedCount(result)
      guard rest > 0, total % rest == 0 else {
        throw ApusError(.typeMismatch, "\(shape) cannot be reshaped to \(wanted)")
      }
      result[open] = total / rest
    }
    guard try Tensor.checkedCount(result) == total else {
      throw ApusError(.typeMismatch, "\(shape) cannot be reshaped to \(wanted)")
    }
    return result
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    return try wholeCopy(shape, as: resolve(shape, inputs.parameter(1, "the shape")))
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let tensors = try inputs.allTensors()
    let x = try inputs.required(0)
    return [.tensor(try x.reshaped(resolve(x.shape, tensors.parameter(1, "the shape"))))]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard let wanted = inputs.ints(1), wanted.count <= 1 else { return [nil] }
    return [PointwiseReference.integerDims(inputs, 0)]
  }
}

/// The axes before `axis` joined to one and those from `axis` on to another.
public struct Flatten: MovementOperator {
  public static let name = "Flatten"
  public var axis: Int

  public init(axis: Int = 1) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 1)
  }

  public var attributes: Attributes { ["axis": .int(axis)] }

  private func split(rank: Int) throws(ApusError) -> Int {
    guard axis >= -rank, axis <= rank else {
      throw ApusError(.typeMismatch, "axis \(axis) does not exist in a tensor of rank \(rank)")
    }
    return axis < 0 ? axis + rank : axis
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard let dims = type.dims else {
      return [typed(type.dataType, [inputs.freshDim("outer"), inputs.freshDim("inner")])]
    }
    let at = try split(rank: dims.count)
    return [typed(type.dataType, [dims[..<at].reduce(1, *), dims[at...].reduce(1, *)])]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let at = try split(rank: shape.count)
    return try wholeCopy(shape, as: [shape[..<at].reduce(1, &*), shape[at...].reduce(1, &*)])
  }
}

/// Axes of size one removed: those of operand 1, or all.
public struct Squeeze: MovementOperator, DataDependentShape, ShapeValueOperator {
  public static let name = "Squeeze"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { count > 1 ? [1] : [] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    if inputs.has(1) { try inputs.requireInteger(1, "axes") }
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    if inputs.has(1) {
      guard let axes = inputs.ints(1) else { return [typed(type.dataType, nil)] }
      let removed = try Axis.resolved(axes, rank: dims.count)
      if let bad = removed.first(where: { dims[$0].value.map { $0 != 1 } ?? false }) {
        throw ApusError(.typeMismatch, "axis \(bad) of \(type) cannot be removed")
      }
      return [
        typed(type.dataType, dims.indices.filter { !removed.contains($0) }.map { dims[$0] })
      ]
    }
    guard type.shape != nil else {
      return [
        typed(type.dataType, dims.contains(1) || !dims.allSatisfy { $0.value != nil } ? nil : dims)
      ]
    }
    return [typed(type.dataType, dims.filter { $0 != 1 })]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    guard let axes = try inputs.optionalParameter(1, "axes") else {
      if shapes.count > 1, shapes[1] != nil {
        throw ApusError(.typeMismatch, "the value of operand 1 (axes) is needed")
      }
      return try wholeCopy(shape, as: shape.filter { $0 != 1 })
    }
    let removed = try Axis.resolved(axes, rank: shape.count)
    return try wholeCopy(
      shape, as: shape.indices.filter { !removed.contains($0) }.map { shape[$0] })
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    [PointwiseReference.integerDims(inputs, 0)]
  }
}

/// Axes of size one inserted, at the places of operand 1 in the result.
public struct Unsqueeze: MovementOperator, DataDependentShape, ShapeValueOperator {
  public static let name = "Unsqueeze"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  private func insert<Size>(_ one: Size, _ dims: [Size], _ axes: [Int]) throws(ApusError) -> [Size]
  {
    let rank = dims.count + axes.count
    let places = try Axis.resolved(axes, rank: rank)
    var rest = dims.makeIterator()
    return (0..<rank).map { places.contains($0) ? one : rest.next() ?? one }
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "axes")
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    if let axes = inputs.ints(1) { return [typed(type.dataType, try insert(1, dims, axes))] }
    guard let added = try inputs.tensor(1).shape?.reduce(1, &*), added <= 64 else {
      return [typed(type.dataType, nil)]
    }
    return [typed(type.dataType, (0..<(dims.count + added)).map { inputs.freshDim("d\($0)") })]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    return try wholeCopy(shape, as: insert(1, shape, inputs.parameter(1, "axes")))
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard inputs.has(0), inputs.types[0]?.tensor?.rank == 0 else { return [nil] }
    return [PointwiseReference.integerDims(inputs, 0)]
  }
}

extension Reshape: BatchwiseOperator {
  /// The order of elements stays, and so does the first axis.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}

extension Flatten: BatchwiseOperator {
  /// The order of elements stays, and so does the first axis.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}

extension Squeeze: BatchwiseOperator {
  /// The order of elements stays, and so does the first axis.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}

extension Unsqueeze: BatchwiseOperator {
  /// The order of elements stays, and so does the first axis.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
