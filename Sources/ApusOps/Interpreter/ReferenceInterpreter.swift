// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Runs a graph by the operators' own definitions: the semantics everything else is tested against.
public enum ReferenceInterpreter {
  /// The graph's results, in the order of its outputs, for inputs in the order of its inputs.
  ///
  /// - Throws: whatever an operator throws, with the node's location.
  public static func run(_ graph: Graph, inputs: [RuntimeValue?]) throws(ApusError)
    -> [RuntimeValue]
  {
    let values = try execute(graph, inputs, keepsAll: false)
    var results: [RuntimeValue] = []
    for (index, output) in graph.outputs.enumerated() {
      guard let value = values[output] else {
        throw ApusError(
          .invalidGraph, "nothing computes the result '\(graph.outputNames[index])'")
      }
      results.append(value)
    }
    return results
  }

  /// Every value of the graph, intermediate ones included.
  public static func runAll(_ graph: Graph, inputs: [RuntimeValue?]) throws(ApusError)
    -> [ValueID: RuntimeValue]
  {
    try execute(graph, inputs, keepsAll: true)
  }

  private static func execute(_ graph: Graph, _ inputs: [RuntimeValue?], keepsAll: Bool)
    throws(ApusError) -> [ValueID: RuntimeValue]
  {
    guard inputs.count == graph.inputs.count else {
      throw ApusError(
        .invalidArgument,
        "the graph '\(graph.name)' takes \(graph.inputs.count) inputs, \(inputs.count) are given")
    }
    var values: [ValueID: RuntimeValue] = [:]
    var uses: [ValueID: Int] = [:]
    for (id, value) in zip(graph.inputs, inputs) { values[id] = value }
    let order = try graph.topologicalOrder()
    for node in order {
      for input in graph[node].inputs { if let input { uses[input, default: 0] += 1 } }
    }
    for output in graph.outputs {
      uses[output, default: 0] += 1
      if graph[output].constant != nil { values[output] = try constant(graph, output) }
    }
    for id in order {
      let node = graph[id]
      let place = GraphLocation(node: node.name, operatorName: node.op.name)
      let results: [RuntimeValue]
      do {
        results = try evaluate(graph, node, values)
      } catch {
        throw error.at(node.location).at(place)
      }
      for (output, result) in zip(node.outputs, results)
      where keepsAll || uses[output, default: 0] > 0 {
        if values[output] == nil { values[output] = result }
      }
      if keepsAll { continue }
      for input in node.inputs {
        guard let input, let left = uses[input] else { continue }
        uses[input] = left - 1
        if left == 1 { values[input] = nil }
      }
    }
    return values
  }

  private static func evaluate(
    _ graph: Graph, _ node: Node, _ values: [ValueID: RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] {
    var operands: [RuntimeValue?] = []
    for input in node.inputs { operands.append(try operand(graph, input, values)) }
    let results = try node.op.evaluate(operands)
    guard results.count >= node.outputs.count else {
      throw ApusError(
        .internalError, "\(results.count) results were computed of \(node.outputs.count)")
    }
    return results
  }

  private static func operand(
    _ graph: Graph, _ id: ValueID?, _ values: [ValueID: RuntimeValue]
  ) throws(ApusError) -> RuntimeValue? {
    guard let id else { return nil }
    if let value = values[id] { return value }
    if graph[id].constant != nil { return try constant(graph, id) }
    if graph.inputs.contains(id) { return nil }
    throw ApusError(.invalidGraph, "nothing computes the operand '\(graph[id].name)'")
  }

  /// A constant in its declared shape; packed ones are put back into row-major order.
  private static func constant(_ graph: Graph, _ id: ValueID) throws(ApusError) -> RuntimeValue? {
    guard let tensor = graph[id].constant else { return nil }
    guard let packing = graph[id].packing else { return .tensor(tensor) }
    guard let type = graph[id].type.tensor, let shape = type.shape else {
      throw ApusError(.invalidGraph, "the packed constant '\(graph[id].name)' has no fixed shape")
    }
    return .tensor(try packing.unpack(tensor, type.dataType, shape: shape))
  }
}
