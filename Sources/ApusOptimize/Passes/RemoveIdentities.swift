// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps

/// What reads the result of `Identity` (dropout, when a network only infers) reads its operand: passes that look at
/// who produces and who reads a value see through it then. Results of the network keep their node, and with it
/// their name.
public struct RemoveIdentities: Pass {
  public let name = "RemoveIdentities"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var removed = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard node.op is Identity, let x = node.inputs[0], !graph.isOutput(node.outputs[0]),
        context.claim(name, node.name)
      else { continue }
      var patch = GraphPatch(rule: name, replacing: [id])
      patch.replace(node.outputs[0], with: .existing(x))
      try patch.apply(to: &graph)
      removed += 1
    }
    return removed
  }
}
