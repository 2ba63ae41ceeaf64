// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

/// A problem read as an anchor with its epilogue.
struct AnchoredProblem {
  /// The anchor operator.
  let anchor: any Operator
  /// The anchor's operands.
  let inputs: ArraySlice<Problem.Operand?>
  /// What is done to each result element.
  let epilogue: ScalarExpr
  /// How the extra operands are indexed.
  let extras: [EpilogueOperand]

  /// Why the epilogue cannot run in registers; nil when it can.
  let refusal: String?

  init(_ problem: Problem) {
    guard let fused = problem.op as? Fused else {
      anchor = problem.op
      inputs = problem.inputs[...]
      epilogue = .input(0)
      extras = []
      refusal = nil
      return
    }
    anchor = fused.anchor
    inputs = problem.inputs.prefix(fused.anchorInputCount)
    epilogue = fused.epilogue.expression
    var extras: [EpilogueOperand] = []
    var refusal: String?
    let shape = problem.outputs[0].shape
    for operand in problem.inputs.dropFirst(fused.anchorInputCount) {
      guard let operand, operand.dataType == .float32, let kind = Self.kind(operand.shape, shape)
      else {
        refusal = "an extra operand is neither a scalar, a vector nor of the result's shape"
        break
      }
      extras.append(kind)
    }
    self.extras = extras
    self.refusal = refusal
  }

  private static func kind(_ operand: [Int], _ result: [Int]) -> EpilogueOperand? {
    let count = operand.reduce(1, *)
    if count == 1 { return .scalar }
    if operand == result { return .full }
    if count == result.last, operand.last == count { return .perColumn }
    return nil
  }
}

extension UnsafePointer<DeviceAddress> {
  /// The addresses from `index` on as the host pointers that they are on this backend.
  @inline(__always) func pointers(from index: Int) -> UnsafePointer<UnsafeRawPointer> {
    UnsafeRawPointer(self + index).assumingMemoryBound(to: UnsafeRawPointer.self)
  }
}
