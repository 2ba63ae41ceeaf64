// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// A value that products read rounded and others (the addition around a residual block) read as it is
/// would have to be stored twice. Its pointwise readers take the rounded form, too.
public struct ShareRoundedValues: Pass {
  public let name = "ShareRoundedValues"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      let node = graph[id]
      guard (node.op as? Cast)?.to == .bfloat16, let x = node.inputs[0], !graph.isOutput(x),
        graph[x].producer != nil, graph[x].type.tensor?.dataType == .float32
      else { continue }
      let others = Set(graph[x].consumers).subtracting([id]).sorted()
      guard !others.isEmpty, others.allSatisfy({ isPointwise($0, graph) }),
        context.claim(name, node.name)
      else { continue }
      var patch = GraphPatch(rule: name, replacing: others)
      let widened = patch.add(Cast(to: .float32), [.existing(node.outputs[0])])
      for other in others {
        let reader = graph[other]
        let inputs = reader.inputs.map { input -> GraphPatch.Reference? in
          input.map { $0 == x ? widened : .existing($0) }
        }
        patch.replace(reader.outputs[0], with: patch.add(reader.op, inputs))
      }
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }

  private func isPointwise(_ id: NodeID, _ graph: Graph) -> Bool {
    graph[id].op is any PointwiseOperator && !(graph[id].op is Cast) && graph[id].outputs.count == 1
  }
}
