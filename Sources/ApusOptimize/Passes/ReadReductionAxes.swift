// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `reduce(x, axes) -> reduce[axes](x)` where the axes are constant: other passes and kernels then know
/// them, whichever version of the operator a model has.
public struct ReadReductionAxes: Pass {
  public let name = "ReadReductionAxes"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard var op = node.op as? Reduce, node.inputs.count == 2 else { continue }
      if let operand = node.inputs[1] {
        guard let axes = graph[operand].constant, axes.dataType == .int64 else { continue }
        op.axes = axes.integers().map { Int($0) }
      }
      guard context.claim(name, node.name) else { continue }
      var patch = GraphPatch(rule: name, replacing: [id])
      patch.replace(
        node.outputs[0], with: patch.add(op, [node.inputs[0].map { .existing($0) }]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
