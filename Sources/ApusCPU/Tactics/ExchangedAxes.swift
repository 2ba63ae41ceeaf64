// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// A movement of elements that exchanges two axes, as transposing kernels see it; strides in elements.
struct ExchangedAxes {
  /// Elements along the axis that becomes the innermost one, and along the one that was.
  let rows: Int
  let columns: Int
  let inStride: Int
  let outStride: Int
  /// The other axes.
  let outer: [(size: Int, source: Int, target: Int)]
  let sourceOffset: Int
  let targetOffset: Int

  /// Reads a problem; nil for any other movement and for elements of another size.
  init?(_ problem: Problem, bitWidth: Int) {
    guard let op = problem.op as? any MovementOperator, problem.outputs.count == 1,
      problem.outputs[0].dataType.bitWidth == bitWidth,
      op.movedInputs(count: problem.inputs.count) == [0],
      let plan = try? op.copyPlan(
        problem.inputs.map { $0?.constant }, shapes: problem.inputs.map { $0?.shape }
      ).simplified(), plan.fill == nil, plan.copies.count == 1
    else { return nil }
    let copy = plan.copies[0]
    let axes = copy.sizes.indices
    guard let fromUnit = axes.first(where: { copy.sourceStrides[$0] == 1 }),
      let toUnit = axes.first(where: { copy.targetStrides[$0] == 1 }), fromUnit != toUnit,
      copy.sourceStrides[toUnit] > 0, copy.targetStrides[fromUnit] > 0
    else { return nil }
    rows = copy.sizes[toUnit]
    columns = copy.sizes[fromUnit]
    inStride = copy.sourceStrides[toUnit]
    outStride = copy.targetStrides[fromUnit]
    outer = axes.filter { $0 != fromUnit && $0 != toUnit }.map {
      (size: copy.sizes[$0], source: copy.sourceStrides[$0], target: copy.targetStrides[$0])
    }
    sourceOffset = copy.sourceOffset
    targetOffset = copy.targetOffset
  }
}
