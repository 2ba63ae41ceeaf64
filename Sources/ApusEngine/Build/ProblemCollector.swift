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

  /// A problem with a node that poses it, and the names of all that do.
  struct Entry {
    let problem: Problem
    let node: Node
    var names: [String]
  }

  /// The problems of everything that can be planned before data is seen.
  func problems(of graph: Graph, types: [ValueType]) throws(ApusError) -> [Entry] {
    let concrete = try Specializer().specialize(graph, types: types)
    guard let part = try ProgramStage.plannedPart(of: concrete) else { return [] }
    var seen: [String: Int] = [:]
    var entries: [Entry] = []
    for (id, problem) in try StaticPlanner(library: library).problems(of: part) {
      if let known = seen[problem.key] {
        entries[known].names.append(part[id].name)
        continue
      }
      seen[problem.key] = entries.count
      entries.append(Entry(problem: problem, node: part[id], names: [part[id].name]))
    }
    return entries
  }
}
