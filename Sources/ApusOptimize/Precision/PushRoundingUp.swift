// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Rounds to `bfloat16` before elements are moved, or the largest of a window is taken, instead of
/// after: half the bytes are moved, and the rounding joins the kernel that computes.
public struct PushRoundingUp: Pass {
  public let name = "PushRoundingUp"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder().reversed() where graph.contains(id) {
      guard (graph[id].op as? Cast)?.to == .bfloat16, let x = graph[id].inputs[0],
        let producer = graph[x].producer
      else { continue }
      let node = graph[producer]
      guard node.outputs.count == 1, !graph.isOutput(x),
        graph[x].consumers.allSatisfy({ $0 == id }), let moved = node.passedOn,
        moved.allSatisfy({ index in
          node.inputs[index].map { graph[$0].type.tensor?.dataType == .float32 } ?? false
        }), context.claim(name, graph[id].name)
      else { continue }
      var patch = GraphPatch(rule: name, replacing: [producer, id])
      var inputs: [GraphPatch.Reference?] = node.inputs.map { $0.map { .existing($0) } }
      for index in moved { inputs[index] = patch.add(graph[id].op, [inputs[index]]) }
      patch.replace(graph[id].outputs[0], with: patch.add(node.op, inputs))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}

extension Node {
  /// The operands that a node only moves, or takes the largest of, so that rounding before it is as
  /// good as after it; nil for other nodes.
  var passedOn: [Int]? {
    if op is MaxPool { return [0] }
    // What a pad is filled with would have to be rounded, too.
    guard let movement = op as? any MovementOperator, !(op is Pad) else { return nil }
    return movement.movedInputs(count: inputs.count)
  }
}
