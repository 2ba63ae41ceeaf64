// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Checks the rules every graph must keep; run around every pass.
public enum GraphVerifier {
  /// - Throws: `invalid-graph` naming the first broken rule and the node.
  public static func verify(_ graph: Graph) throws(ApusError) {
    let order = try graph.topologicalOrder()
    var uses: [ValueID: [NodeID: Int]] = [:]
    for id in order {
      let node = graph[id]
      for (index, output) in node.outputs.enumerated() {
        let value = graph[output]
        try require(
          value.producer == id && value.outputIndex == index, node,
          "result '\(value.name)' does not name the node as its producer")
      }
      for input in node.inputs.compactMap({ $0 }) {
        uses[input, default: [:]][id, default: 0] += 1
        let value = graph[input]
        let isSource = value.constant != nil || graph.inputs.contains(input)
        try require(
          isSource || value.producer.map { graph.contains($0) } == true, node,
          "operand '\(value.name)' is neither an input, a constant nor a node's result")
      }
      try verifyConstants(node, graph)
      if let op = node.op as? any ControlFlowOperator {
        for body in op.bodies { try verify(body) }
      }
    }
    for (index, output) in graph.outputs.enumerated() {
      let value = graph[output]
      guard
        value.constant != nil || graph.inputs.contains(output)
          || value.producer.map({ graph.contains($0) }) == true
      else {
        throw ApusError(
          .invalidGraph, "result '\(graph.outputNames[index])' of the graph is never computed")
      }
    }
    try verifyUses(graph, uses)
  }

  private static func verifyConstants(_ node: Node, _ graph: Graph) throws(ApusError) {
    for input in node.inputs.compactMap({ $0 }) {
      let value = graph[input]
      guard let constant = value.constant, value.packing == nil else { continue }
      try require(
        value.type == .tensor(constant.type), node,
        "constant '\(value.name)' is \(constant.type) but declared \(value.type)")
    }
  }

  private static func verifyUses(_ graph: Graph, _ uses: [ValueID: [NodeID: Int]]) throws(ApusError)
  {
    for id in graph.values {
      var recorded: [NodeID: Int] = [:]
      for consumer in graph[id].consumers { recorded[consumer, default: 0] += 1 }
      guard recorded == uses[id] ?? [:] else {
        throw ApusError(
          .invalidGraph, "the recorded uses of '\(graph[id].name)' differ from its real uses")
      }
    }
  }

  private static func require(
    _ condition: Bool, _ node: Node, _ message: @autoclosure () -> String
  ) throws(ApusError) {
    guard !condition else { return }
    throw ApusError(.invalidGraph, message(), location: node.location)
  }
}
