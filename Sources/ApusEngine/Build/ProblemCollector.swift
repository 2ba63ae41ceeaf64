// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOptimize
import ApusTensor

/// Finds the problems a network poses at given input shapes, each once.
struct ProblemCollector {
  let library: KernelLibrary

  /// A problem with a node that poses it.
  struct Entry {
    let problem: Problem
    let node: Node
  }

  /// The problems of everything that can be planned before data is seen.
  func problems(of graph: Graph, types: [ValueType]) throws(ApusError) -> [Entry] {
    let concrete = try Specializer().specialize(graph, types: types)
    let stage: ProgramStage? = try ProgramStage(concrete, library: library)
    var seen: Set<String> = []
    var entries: [Entry] = []
    for step in stage?.plan?.steps ?? [] where seen.insert(step.problem.key).inserted {
      guard let id = concrete.nodes.first(where: { concrete[$0].name == step.nodeName }) else {
        continue
      }
      entries.append(Entry(problem: step.problem, node: concrete[id]))
    }
    return entries
  }
}
