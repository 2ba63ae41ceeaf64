// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Reads an elementwise operator over channels-last images as the first stage of strips.
enum ElementwiseStage {
  static func read(_ problem: Problem, isa: ISA) -> Result<StripPlan.Stage, ConvProblem.Refusal> {
    guard let op = problem.op as? any PointwiseOperator, let x = problem.inputs.first ?? nil else {
      return .failure("not elementwise")
    }
    let result = problem.outputs[0]
    let others = problem.inputs.dropFirst()
    guard x.shape == result.shape, x.shape.count == 4, result.count > 0,
      problem.inputs.allSatisfy({ $0?.packing == nil && $0?.pitch == nil }), result.pitch == nil
    else { return .failure("not over the pixels of dense images") }
    let operands = others.compactMap { $0.flatMap { operand($0.shape, x.shape) } }
    guard operands.count == others.count else {
      return .failure("an operand is neither a scalar nor one element for each channel")
    }
    let types = problem.inputs.compactMap { $0?.dataType }
    guard let kind = ProductKind(reading: x.dataType) else { return .failure("no kernel for these element types") }
    let elementwise = StripElementwise(
      op.body(types), operands: operands,
      types: PointwiseKernel.Types(operands: types, result: result.dataType))
    let shape = ConvShape(
      batch: x.shape[0], inHeight: x.shape[1], inWidth: x.shape[2], inChannels: x.shape[3],
      outHeight: x.shape[1], outWidth: x.shape[2], outChannels: x.shape[3], kernelHeight: 1,
      kernelWidth: 1)
    do throws(ApusError) {
      _ = try StripElementwise.Code(elementwise, shape, isa: isa)
    } catch {
      return .failure(ConvProblem.Refusal(error.message))
    }
    var stage = StripPlan.Stage(shape, types: ProductTypes(kind, result: result.dataType))
    stage.elementwise = elementwise
    return .success(stage)
  }

  /// How an operand of this shape is read beside images of shape `x`.
  private static func operand(_ shape: [Int], _ x: [Int]) -> StripElementwise.Operand? {
    let count = shape.reduce(1, *)
    if count == 1 { return .scalar }
    guard shape.last == x[3] else { return nil }
    if count == x[3] { return .perChannel(ofEachImage: false) }
    return shape.count == 4 && shape[0] == x[0] && count == x[0] * x[3]
      ? .perChannel(ofEachImage: true) : nil
  }
}

extension ProductKind {
  /// A kind of product whose operands are as wide as elements of a type.
  init?(reading type: DataType) {
    switch type {
    case .float32: self = .float32
    case .bfloat16: self = .bfloat16
    case .uint8, .int8: self = .bytes(.current)
    default: return nil
    }
  }
}
