// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Quantises before elements are moved instead of after: bytes are moved, and the rounding joins the
/// kernel that computes. Rounding keeps the order of numbers, so it also passes the largest of a window.
///
/// `QuantizeLinear` of a `DequantizeLinear` with the same parameters is what was dequantised.
public struct PushQuantizeUp: Pass {
  public let name = "PushQuantizeUp"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder().reversed() where graph.contains(id) {
      guard graph[id].op is QuantizeLinear,
        let parameters = QuantizationParameters(graph[id], graph), parameters.type.bitWidth == 8,
        let x = graph[id].inputs[0], let producer = graph[x].producer
      else { continue }
      var done = try cancel(id, parameters, producer, &graph, context)
      if !done { done = try push(id, x, producer, &graph, context) }
      if done { count += 1 }
    }
    return count
  }

  private func cancel(
    _ id: NodeID, _ parameters: QuantizationParameters, _ producer: NodeID, _ graph: inout Graph,
    _ context: PassContext
  ) throws(ApusError) -> Bool {
    guard graph[producer].op is DequantizeLinear, let source = graph[producer].inputs[0],
      QuantizationParameters(graph[producer], graph) == parameters,
      !graph.isOutput(graph[id].outputs[0]), context.claim(name, graph[id].name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    patch.replace(graph[id].outputs[0], with: .existing(source))
    try patch.apply(to: &graph)
    return true
  }

  private func push(
    _ id: NodeID, _ x: ValueID, _ producer: NodeID, _ graph: inout Graph, _ context: PassContext
  ) throws(ApusError) -> Bool {
    let node = graph[producer]
    guard node.outputs.count == 1, !graph.isOutput(x),
      graph[x].consumers.allSatisfy({ $0 == id }), let moved = node.passedOn,
      moved.allSatisfy({ index in
        node.inputs[index].map { graph[$0].type.tensor?.dataType == .float32 } ?? false
      }), context.claim(name, graph[id].name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [producer, id])
    let parameters = graph[id].inputs.dropFirst().map { $0.map { GraphPatch.Reference.existing($0) } }
    var inputs: [GraphPatch.Reference?] = node.inputs.map { $0.map { .existing($0) } }
    for index in moved { inputs[index] = patch.add(graph[id].op, [inputs[index]] + parameters) }
    patch.replace(graph[id].outputs[0], with: patch.add(node.op, inputs))
    try patch.apply(to: &graph)
    return true
  }
}
