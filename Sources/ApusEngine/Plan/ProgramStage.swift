// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// One step of a program for known input shapes: a static plan, then operators that the host runs,
/// then the rest of the program.
package final class ProgramStage: Sendable {
  /// An operator that the host runs with its reference semantics.
  struct HostNode: Sendable {
    let node: Node
    /// The bodies of a control-flow operator as programs.
    let bodies: [GraphProgram]
  }

  let graph: Graph
  /// The static part; nil when there is none.
  package let plan: StaticPlan?
  let planInputs: [ValueID]
  let planOutputs: [ValueID]
  let hostNodes: [HostNode]
  /// What runs after the host nodes; nil when nothing is left.
  let rest: GraphProgram?
  let restInputs: [ValueID]
  let restOutputs: [ValueID]

  /// Whether the whole graph is one static plan from the graph's inputs to its results.
  package var isStatic: Bool { plan != nil && hostNodes.isEmpty && rest == nil }

  /// A stage; its plan is for one of `repeats` members of a batch.
  init(_ graph: Graph, library: KernelLibrary, repeats: Int = 1) throws(ApusError) {
    self.graph = graph
    let order = try graph.topologicalOrder()
    let (planned, hosted, remaining) = Self.partition(graph, order)
    let inputs = graph.inputs
    if hosted.isEmpty && remaining.isEmpty {
      planInputs = inputs
      planOutputs = graph.outputs
    } else {
      planInputs = Self.liveIn(graph, planned)
      planOutputs = Self.liveOut(graph, planned, readers: hosted + remaining)
    }
    plan = try Self.plannedPart(graph, planned, inputs: planInputs, outputs: planOutputs).map {
      part throws(ApusError) in
      let plan = try StaticPlanner(library: library).plan(part)
      return repeats > 1 ? plan.repeated(repeats) : plan
    }
    hostNodes = hosted.map { id in
      let bodies = (graph[id].op as? any ControlFlowOperator)?.bodies ?? []
      return HostNode(
        node: graph[id], bodies: bodies.map { GraphProgram($0, library: library) })
    }
    restInputs = Self.liveIn(graph, remaining)
    restOutputs = Self.liveOut(graph, remaining, readers: [])
    rest =
      remaining.isEmpty
      ? nil
      : GraphProgram(
        graph.extracting(
          nodes: remaining, inputs: restInputs, outputs: restOutputs, name: graph.name),
        library: library)
  }

  /// The part of a graph that can be planned before data is seen; nil when there is none.
  static func plannedPart(of graph: Graph) throws(ApusError) -> Graph? {
    let (planned, hosted, remaining) = partition(graph, try graph.topologicalOrder())
    return plannedPart(
      graph, planned, inputs: liveIn(graph, planned),
      outputs: liveOut(graph, planned, readers: hosted + remaining))
  }

  private static func plannedPart(
    _ graph: Graph, _ planned: [NodeID], inputs: [ValueID], outputs: [ValueID]
  ) -> Graph? {
    let isWhole = planned.count == graph.nodeCount
    if isWhole && isPlannable(graph) { return graph }
    if planned.isEmpty { return nil }
    return graph.extracting(nodes: planned, inputs: inputs, outputs: outputs, name: graph.name)
  }

  /// Splits the nodes into those a static plan can run now, those the host runs next, and the rest.
  private static func partition(_ graph: Graph, _ order: [NodeID]) -> (
    planned: [NodeID], hosted: [NodeID], remaining: [NodeID]
  ) {
    enum Kind { case planned, hosted, remaining }
    var kinds: [NodeID: Kind] = [:]
    var planned: [NodeID] = []
    var hosted: [NodeID] = []
    var remaining: [NodeID] = []
    for id in order {
      let producers = graph[id].inputs.compactMap { $0.flatMap { graph[$0].producer } }
      let before = producers.compactMap { kinds[$0] }
      if before.contains(.remaining) {
        kinds[id] = .remaining
        remaining.append(id)
      } else if needsHost(graph[id], graph) {
        kinds[id] = .hosted
        hosted.append(id)
      } else if before.contains(.hosted) {
        kinds[id] = .remaining
        remaining.append(id)
      } else {
        kinds[id] = .planned
        planned.append(id)
      }
    }
    return (planned, hosted, remaining)
  }

  /// Whether a kernel cannot run the node: control flow, containers, strings, open result shapes.
  private static func needsHost(_ node: Node, _ graph: Graph) -> Bool {
    if node.op is any ControlFlowOperator || node.op is any NondeterministicOperator { return true }
    if let op = node.op as? any DataDependentShape {
      for index in op.shapeDecidingInputs(count: node.inputs.count) where index < node.inputs.count {
        if let input = node.inputs[index], graph[input].constant == nil { return true }
      }
    }
    for input in node.inputs.compactMap({ $0 }) {
      guard let type = graph[input].type.tensor, type.dataType != .string else { return true }
    }
    // Open operand shapes come from host nodes only; then the node belongs to the rest.
    let operandsKnown = node.inputs.allSatisfy { $0.map { isKnown($0, graph) } ?? true }
    guard operandsKnown else {
      return !node.inputs.contains { $0.flatMap { graph[$0].producer } != nil }
    }
    return !node.outputs.allSatisfy { isKnown($0, graph) }
  }

  private static func isKnown(_ value: ValueID, _ graph: Graph) -> Bool {
    guard let type = graph[value].type.tensor, type.dataType != .string else { return false }
    return type.shape != nil
  }

  private static func isPlannable(_ graph: Graph) -> Bool {
    (graph.inputs + graph.outputs).allSatisfy { isKnown($0, graph) }
  }

  private static func liveIn(_ graph: Graph, _ nodes: [NodeID]) -> [ValueID] {
    let made = Set(nodes.flatMap { graph[$0].outputs })
    var seen: Set<ValueID> = []
    return nodes.flatMap { graph[$0].inputs.compactMap { $0 } }.filter {
      !made.contains($0) && graph[$0].constant == nil && seen.insert($0).inserted
    }
  }

  private static func liveOut(_ graph: Graph, _ nodes: [NodeID], readers: [NodeID]) -> [ValueID] {
    let read = Set(readers.flatMap { graph[$0].inputs.compactMap { $0 } }).union(graph.outputs)
    return nodes.flatMap { graph[$0].outputs }.filter { read.contains($0) }
  }
}
