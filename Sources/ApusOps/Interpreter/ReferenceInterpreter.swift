// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Runs graphs by their operators' reference semantics, node by node: the specification that kernels,
/// passes and backends are compared with.
public enum ReferenceInterpreter {
  /// The results of a graph, in order.
  ///
  /// - Throws: what an operator throws, with the node's location.
  public static func run(_ graph: Graph, inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  {
    var values = try start(graph, inputs)
    let order = try graph.topologicalOrder()
    var uses = useCounts(graph, order)
    for id in order {
      try step(graph[id], graph, &values)
      for input in graph[id].inputs.compactMap({ $0 }) {
        uses[input, default: 0] -= 1
        if uses[input] == 0 { values[input] = nil }
      }
    }
    return try results(graph, values)
  }

  /// Every value of a graph.
  public static func runAll(_ graph: Graph, inputs: [RuntimeValue?]) throws(ApusError)
    -> [ValueID: RuntimeValue]
  {
    var values = try start(graph, inputs)
    for id in try graph.topologicalOrder() { try step(graph[id], graph, &values) }
    return values
  }

  private static func start(_ graph: Graph, _ inputs: [RuntimeValue?]) throws(ApusError)
    -> [ValueID: RuntimeValue]
  {
    guard inputs.count == graph.inputs.count else {
      throw ApusError(
        .invalidArgument,
        "'\(graph.name)' has \(graph.inputs.count) inputs, \(inputs.count) are given")
    }
    var values: [ValueID: RuntimeValue] = [:]
    for (id, value) in zip(graph.inputs, inputs) { values[id] = value }
    return values
  }

  private static func useCounts(_ graph: Graph, _ order: [NodeID]) -> [ValueID: Int] {
    var uses: [ValueID: Int] = [:]
    for id in order { for input in graph[id].inputs.compactMap({ $0 }) { uses[input, default: 0] += 1 } }
    for output in graph.outputs { uses[output, default: 0] += 1 }
    return uses
  }

  private static func value(_ id: ValueID, _ graph: Graph, _ values: [ValueID: RuntimeValue])
    throws(ApusError) -> RuntimeValue?
  {
    if let known = values[id] { return known }
    guard let constant = graph[id].constant else { return nil }
    guard let packing = graph[id].packing else { return .tensor(constant) }
    return .tensor(try packing.unpack(constant, shape: graph[id].type.tensor?.shape ?? []))
  }

  private static func step(
    _ node: Node, _ graph: Graph, _ values: inout [ValueID: RuntimeValue]
  ) throws(ApusError) {
    var operands: [RuntimeValue?] = []
    for input in node.inputs {
      operands.append(try input.flatMap { id throws(ApusError) in try value(id, graph, values) })
    }
    do {
      let results = try node.op.evaluate(operands)
      guard results.count >= node.outputs.count else {
        throw ApusError(
          .internalError, "\(results.count) results where \(node.outputs.count) are expected")
      }
      for (output, value) in zip(node.outputs, results) { values[output] = value }
    } catch {
      throw error.at(node.location).at(GraphLocation(node: node.name, operatorName: node.op.name))
    }
  }

  private static func results(_ graph: Graph, _ values: [ValueID: RuntimeValue]) throws(ApusError)
    -> [RuntimeValue]
  {
    var results: [RuntimeValue] = []
    for (name, id) in zip(graph.outputNames, graph.outputs) {
      guard let value = try value(id, graph, values) else {
        throw ApusError(.internalError, "result '\(name)' was not computed")
      }
      results.append(value)
    }
    return results
  }
}
