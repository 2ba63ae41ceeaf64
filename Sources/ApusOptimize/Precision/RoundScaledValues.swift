// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// A tensor that is scaled and then rounded to `bfloat16` for a product, and whose mean is taken, is rounded before:
/// the kernel that computes it stores half the bytes, and both readers read half.
///
/// In squeeze and excitation, where means of all places scale the channels, these are the widest tensors of a
/// network. `WidenInReaders` then makes both readers widen for themselves.
public struct RoundScaledValues: Pass {
  public let name = "RoundScaledValues"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      guard (graph[id].op as? Reduce)?.function == .mean, graph[id].inputs.count == 1,
        let x = graph[id].inputs[0], !graph.isOutput(x), isComputedElementwise(x, graph)
      else { continue }
      let others = Set(graph[x].consumers).subtracting([id])
      guard !others.isEmpty, others.allSatisfy({ isRounded($0, graph) }),
        context.claim(name, graph[id].name)
      else { continue }
      try round(x, readers: [id] + others.sorted(), &graph)
      count += 1
    }
    return count
  }

  /// Whether a value is computed by a kernel that can round on the way out: not from BF16 alone.
  private func isComputedElementwise(_ x: ValueID, _ graph: Graph) -> Bool {
    guard graph[x].type.tensor?.dataType == .float32, let producer = graph[x].producer else { return false }
    return graph[producer].op is any PointwiseOperator && !(graph[producer].op is Cast)
  }

  /// Whether a node is elementwise and its result is rounded and nothing else.
  private func isRounded(_ id: NodeID, _ graph: Graph) -> Bool {
    let node = graph[id]
    guard node.op is any PointwiseOperator, node.outputs.count == 1, !graph.isOutput(node.outputs[0])
    else { return false }
    let readers = graph[node.outputs[0]].consumers
    return !readers.isEmpty && readers.allSatisfy { (graph[$0].op as? Cast)?.to == .bfloat16 }
  }

  private func round(_ x: ValueID, readers: [NodeID], _ graph: inout Graph) throws(ApusError) {
    for id in readers {
      // Equal casts of the readers become one.
      let node = graph[id]
      var patch = GraphPatch(rule: name, replacing: [id])
      let rounded = patch.add(Cast(to: .bfloat16), [.existing(x)])
      let widened = patch.add(Cast(to: .float32), [rounded])
      let inputs = node.inputs.map { input -> GraphPatch.Reference? in
        input.map { $0 == x ? widened : .existing($0) }
      }
      patch.replace(node.outputs[0], with: patch.add(node.op, inputs))
      try patch.apply(to: &graph)
    }
  }
}
