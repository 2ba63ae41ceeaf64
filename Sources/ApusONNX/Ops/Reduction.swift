// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Reductions over axes.
  mutating func addReduction() {
    // `ReduceSum` takes its axes as an operand from version 13, the others from 18.
    add("ReduceSum", .sum, operandsSince: 13)
    add("ReduceMean", .mean, operandsSince: 18)
    add("ReduceMax", .max, operandsSince: 18)
    add("ReduceMin", .min, operandsSince: 18)
    add("ReduceProd", .prod, operandsSince: 18)
    add("ReduceL1", .l1, operandsSince: 18)
    add("ReduceL2", .l2, operandsSince: 18)
    add("ReduceSumSquare", .sumSquare, operandsSince: 18)
    add("ReduceLogSum", .logSum, operandsSince: 18)
    add("ReduceLogSumExp", .logSumExp, operandsSince: 18)
  }

  private mutating func add(_ name: String, _ function: Reduce.Function, operandsSince: Int) {
    op(name, since: 1) { (node) throws(ApusError) in
      Reduce(
        function: function, axes: try node.attributes.optionalInts("axes"),
        keepDims: try node.attributes.flag("keepdims", true))
    }
    op(name, since: operandsSince) { (node) throws(ApusError) in
      Reduce(
        function: function, axes: nil, keepDims: try node.attributes.flag("keepdims", true),
        noopWithEmptyAxes: try node.attributes.flag("noop_with_empty_axes", false))
    }
  }
}
