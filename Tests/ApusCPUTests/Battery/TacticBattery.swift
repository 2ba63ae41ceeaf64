// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusKernel
import ApusTensor
import Testing

/// Every tactic that the backend registers, in every configuration it offers, over problems at the edges of tiles,
/// with buffers between guard pages and at odd addresses, against the operator's reference semantics. A tactic that
/// no problem reaches fails, too.
///
/// `APUS_CPU_ISA` chooses the instruction set; `make battery` goes over all of them.
@Suite(.serialized) struct TacticBattery {
  /// Where problems come from. A tactic for operators that none of these makes needs a family here.
  static var families: [any ProblemFamily.Type] {
    [
      PackedProducts.self, ComputedProducts.self, NibbleProducts.self, Convolutions.self,
      DepthwiseConvolutions.self, WinogradConvolutions.self, TransposedConvolutions.self,
      ConvolutionChains.self, Pools.self, Rows.self, Reductions.self, Extrema.self,
      NeighbourNorms.self, PointwiseRegions.self, Copies.self, Transpositions.self, Gathers.self,
      RecurrentLayers.self, AttentionHeads.self,
    ]
  }

  /// Configurations of one problem that are tried at most. Where a tactic offers more, the first guesses are among
  /// them, and problems take turns with the others.
  private static let mostConfigurations = 24
  /// Problems with more operations are not tried with the portable tactic, which is the reference itself.
  private static let portableLimit = 2e4

  @Test func everyTacticEqualsTheReference() throws {
    FaultReport.install()
    let backend = try CPUBackend.shared(threadCount: 2)
    let other = try CPUBackend.shared(threadCount: 1)
    var table = BatteryTable(backend.tactics, isa: backend.traits.isa)
    let start = Clock.seconds
    for (number, family) in Self.families.enumerated() {
      var make = ProblemMaker(seed: UInt64(number + 1))
      let began = Clock.seconds
      for (turn, sample) in try family.problems(&make).enumerated() {
        try Self.run(sample, turn, backend, other, &table)
      }
      Log.debug(1, "battery: \(family) in \(Clock.seconds - began) s")
    }
    table.seconds = Clock.seconds - start
    print(table)
    for row in table.rows where !row.passes {
      Issue.record(
        "\(row.tactic) on \(table.isa): \(row.verdict)\n\(row.failures.prefix(5).joined(separator: "\n"))"
      )
    }
  }

  /// Tries a problem with every tactic that takes it.
  private static func run(
    _ sample: BatteryProblem, _ turn: Int, _ backend: CPUBackend, _ other: CPUBackend,
    _ table: inout BatteryTable
  ) throws {
    let problem = sample.problem
    let takers = backend.tactics.enumerated().filter { _, tactic in
      tactic.source == "portable"
        ? problem.cost.operations <= portableLimit : tactic.support(problem) == .yes
    }
    guard takers.contains(where: { $0.element.source != "portable" }) else { return }
    let trial = try TacticTrial(sample, backend)
    let types = problem.inputs.prefix(2).compactMap { ($0?.dataType).map { "\($0)" } }
    for (index, tactic) in takers {
      let isReference = tactic.source == "portable"
      table[index].problems += 1
      table[index].types.insert(types.joined(separator: "x"))
      for configuration in chosen(tactic.configurations(problem), turn) {
        let outcome = trial.run(
          tactic, configuration, other: other.tactics[index],
          placements: isReference ? [.beforeGuard] : Placement.allCases)
        table[index].configurations += 1
        table[index].error = max(table[index].error, outcome.error)
        if let failure = outcome.failure {
          Log.debug(1, "\(tactic.id(configuration, isa: table.isa)) \(failure) \(problem.key)")
          table[index].failures.append(
            "\(tactic.id(configuration, isa: table.isa)): \(failure)\n  \(problem.key)")
        }
      }
    }
  }

  private static func chosen(_ all: [TacticConfiguration], _ turn: Int) -> [TacticConfiguration] {
    guard all.count > mostConfigurations else { return all }
    let first = all.prefix(mostConfigurations / 3)
    let others = Array(all.dropFirst(first.count))
    let count = mostConfigurations - first.count
    return first + (0..<count).map { others[(turn * count + $0) % others.count] }
  }
}
