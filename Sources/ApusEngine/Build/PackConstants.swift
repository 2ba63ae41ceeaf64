// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOptimize
import ApusTensor

/// Stores constants in the order that the chosen kernels read them, so that an engine file is mapped
/// and used without another copy.
struct PackConstants {
  let library: KernelLibrary

  /// Packs the constants that all their users want in the same order.
  func run(on graph: inout Graph, types: [ValueType]) throws(ApusError) {
    let wanted = try layouts(of: graph, types)
    for id in graph.values {
      let value = graph[id]
      guard let constant = value.constant, value.packing == nil, !graph.isOutput(id),
        let layouts = wanted[value.name], layouts.count == 1, let layout = layouts.first ?? nil
      else { continue }
      graph.makeConstant(id, try layout.pack(constant), packing: layout)
      graph[id].type = value.type
    }
  }

  /// How the constants are wanted, by name.
  private func layouts(of graph: Graph, _ types: [ValueType]) throws(ApusError)
    -> [String: Set<PackedLayout?>]
  {
    let concrete = try Specializer().specialize(graph, types: types)
    var wanted: [String: Set<PackedLayout?>] = [:]
    func add(_ node: Node, _ problem: Problem, in graph: Graph) {
      guard let choice = try? library.choose(problem) else { return }
      let packing = choice.tactic.packing(problem, choice.configuration)
      for (index, input) in node.inputs.enumerated() {
        guard let input, graph[input].constant != nil else { continue }
        wanted[graph[input].name, default: []].insert(packing[index])
      }
    }
    // What is planned, where its operands and results lie; then what has no kernel or waits for data.
    var planned: Set<String> = []
    if let part = try ProgramStage.plannedPart(of: concrete) {
      for (id, problem) in try StaticPlanner(library: library).problems(of: part) {
        add(part[id], problem, in: part)
        planned.formUnion(part[id].outputs.map { part[$0].name })
      }
    }
    for id in concrete.nodes {
      let node = concrete[id]
      guard !node.outputs.contains(where: { planned.contains(concrete[$0].name) }),
        let problem = try? Problem(node, in: concrete)
      else { continue }
      add(node, problem, in: concrete)
    }
    return wanted
  }
}
