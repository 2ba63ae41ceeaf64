// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize
import ApusTensor

extension Builder {
  /// Joins convolutions into chains where a kernel for the chain is faster than those of the convolutions,
  /// which have been chosen before.
  func joinChains(
    in graph: inout Graph, _ types: [ValueType], _ tuner: Tuner, _ report: inout BuildReport
  ) throws(ApusError) {
    let rule = ChainConvolutions()
    let context = PassContext()
    guard context.isEnabled(rule.name) else { return }
    let candidates = try rule.candidates(in: graph, context)
    if candidates.isEmpty { return }
    let concrete = try Specializer().specialize(graph, types: types)
    var count = 0
    for nodes in candidates where nodes.allSatisfy({ concrete.contains($0) }) {
      var stages: [Problem] = []
      for id in nodes { stages.append(try Problem(concrete[id], in: concrete)) }
      let operands = stages.flatMap { $0.inputs.dropFirst() }
      let problem = Problem(
        op: ChainConvolutions.chain(nodes, concrete), inputs: stages[0].inputs.prefix(1) + operands,
        outputs: stages[stages.count - 1].outputs)
      let (choice, tuned) = try tuner.tune(chain: problem, stages)
      if choice != nil || !tuned.measurements.isEmpty { report.tuned.append(tuned) }
      guard let choice, context.claim(rule.name, graph[nodes[0]].name) else { continue }
      tuner.library.selections.record(
        TimingCache.Entry(winner: choice.id, version: choice.tactic.version, measurements: []),
        problem: problem.key, device: tuner.library.selectionDevice)
      try rule.join(nodes, &graph)
      count += 1
    }
    if count > 0 { report.rewrites.append((rule.name, count)) }
    report.refusals += context.refusals.map { ($0.rule, $0.node, $0.reason) }
  }
}
