// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Replaces an `If` whose condition is a constant by the branch it takes.
public struct InlineConstantConditions: Pass {
  public let name = "InlineConstantConditions"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var inlined = 0
    for id in try graph.topologicalOrder() where graph[id].op.name == "If" {
      let node = graph[id]
      guard let op = node.op as? any ControlFlowOperator, op.bodies.count == 2,
        let condition = node.inputs.first.flatMap({ $0 }), let value = graph[condition].constant,
        value.count == 1, context.claim(name, node.name)
      else { continue }
      let body = op.bodies[value.integers()[0] != 0 ? 0 : 1]
      try inline(body, operands: Array(node.inputs.dropFirst()), at: id, &graph)
      inlined += 1
    }
    return inlined
  }

  private func inline(_ body: Graph, operands: [ValueID?], at id: NodeID, _ graph: inout Graph)
    throws(ApusError)
  {
    let node = graph[id]
    var mapped: [ValueID: ValueID] = [:]
    for (input, operand) in zip(body.inputs, operands) { mapped[input] = operand }
    func map(_ value: ValueID) -> ValueID? {
      if let known = mapped[value] { return known }
      guard let constant = body[value].constant else { return nil }
      let new = graph.addConstant(
        "\(node.name)/\(body[value].name)", constant, packing: body[value].packing)
      graph[new].type = body[value].type
      mapped[value] = new
      return new
    }
    for inner in try body.topologicalOrder() {
      let source = body[inner]
      let new = graph.addNode(
        source.op, source.inputs.map { $0.flatMap(map) },
        types: source.outputs.map { body[$0].type },
        outputNames: source.outputs.map { "\(node.name)/\(body[$0].name)" },
        name: "\(node.name)/\(source.name)", location: source.location, sources: source.sources)
      for (old, fresh) in zip(source.outputs, graph[new].outputs) { mapped[old] = fresh }
    }
    for (old, output) in zip(node.outputs, body.outputs) {
      guard let new = map(output) else {
        throw ApusError(
          .internalError, "the branch's result '\(body[output].name)' is not computed",
          location: node.location)
      }
      graph.replaceUses(of: old, with: new)
    }
    graph.remove(id)
  }
}
