// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The operand broadcast together with the shape in operand 1.
public struct Expand: MovementOperator, DataDependentShape {
  public static let name = "Expand"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "the shape")
    if let wanted = inputs.dims(1) {
      guard let dims = type.dims else { return [typed(type.dataType, nil)] }
      return [typed(type.dataType, try Broadcasting.dims([dims, wanted]))]
    }
    guard let rank = type.rank, let length = try inputs.tensor(1).shape?.first, length <= 64 else {
      return [typed(type.dataType, nil)]
    }
    return [typed(type.dataType, (0..<max(rank, length)).map { inputs.freshDim("d\($0)") })]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let wanted = try inputs.parameter(1, "the shape")
    let result = try Broadcasting.shape([shape, wanted])
    return CopyPlan(
      outputShapes: [result],
      copies: [
        CopyPlan.Copy(
          input: 0, sizes: result, sourceStrides: Broadcasting.strides(shape, to: result),
          targetStrides: CopyPlan.rowMajorStrides(result))
      ])
  }
}

/// The operand repeated along each axis as often as operand 1 says.
public struct Tile: MovementOperator, DataDependentShape {
  public static let name = "Tile"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "repeats")
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    guard let repeats = inputs.dims(1) else {
      return [typed(type.dataType, dims.indices.map { inputs.freshDim("d\($0)") })]
    }
    guard repeats.count == dims.count,
      !repeats.contains(where: { $0.value.map { $0 < 0 } ?? false })
    else { throw ApusError(.typeMismatch, "\(repeats) do not say how to repeat \(type)") }
    return [typed(type.dataType, zip(dims, repeats).map { $0 * $1 })]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let repeats = try inputs.parameter(1, "repeats")
    guard repeats.count == shape.count, repeats.allSatisfy({ $0 >= 0 }) else {
      throw ApusError(.typeMismatch, "\(repeats) do not say how to repeat \(shape)")
    }
    let result = zip(shape, repeats).map { size, times in
      let (product, overflow) = size.multipliedReportingOverflow(by: times)
      return overflow ? -1 : product
    }
    _ = try Tensor.checkedCount(result)
    let source = CopyPlan.rowMajorStrides(shape)
    let target = CopyPlan.rowMajorStrides(result)
    var copy = CopyPlan.Copy(input: 0, sizes: [], sourceStrides: [], targetStrides: [])
    for axis in shape.indices {
      copy.sizes += [repeats[axis], shape[axis]]
      copy.sourceStrides += [0, source[axis]]
      copy.targetStrides += [target[axis] &* shape[axis], target[axis]]
    }
    return CopyPlan(outputShapes: [result], copies: [copy])
  }
}
