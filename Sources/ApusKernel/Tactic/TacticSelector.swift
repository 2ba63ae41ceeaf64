// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Lists the choices for a problem on a backend, with the reasons of those that refuse.
public struct TacticSelector: Sendable {
  /// A tactic that refused.
  public struct Refusal: Sendable, Hashable {
    public let tactic: String
    public let reason: String
  }

  private let backend: any Backend
  private let sources: [String]
  private let forced: String

  /// A selector for a backend that honours `APUS_TACTIC_SOURCES` and `APUS_FORCE_TACTIC`.
  public init(_ backend: any Backend) {
    self.backend = backend
    sources = Knobs.tacticSources.list
    forced = Knobs.forceTactic.text
  }

  /// The choices, estimated fastest first, and the refusals. Choices whose packing contradicts how
  /// a constant is stored already are refused.
  public func candidates(_ problem: Problem) -> (choices: [TacticChoice], refusals: [Refusal]) {
    var choices: [(choice: TacticChoice, seconds: Double)] = []
    var refusals: [Refusal] = []
    for tactic in backend.tactics {
      if !sources.isEmpty && !sources.contains(tactic.source) && tactic.source != "portable" {
        refusals.append(
          Refusal(tactic: tactic.name, reason: "source '\(tactic.source)' is switched off"))
        continue
      }
      if let reason = pitchConflict(problem, tactic) {
        refusals.append(Refusal(tactic: tactic.name, reason: reason))
        continue
      }
      if case .no(let reason) = tactic.support(problem) {
        refusals.append(Refusal(tactic: tactic.name, reason: reason))
        continue
      }
      for configuration in tactic.configurations(problem) {
        let choice = TacticChoice(tactic, configuration, isa: backend.traits.isa)
        if let reason = packingConflict(problem, choice) {
          refusals.append(Refusal(tactic: choice.id, reason: reason))
          continue
        }
        choices.append((choice, tactic.estimateSeconds(problem, configuration)))
      }
    }
    if !forced.isEmpty, choices.contains(where: { $0.choice.id.contains(forced) }) {
      choices = choices.filter { $0.choice.id.contains(forced) }
    }
    let order = choices.indices.sorted {
      choices[$0].seconds != choices[$1].seconds
        ? choices[$0].seconds < choices[$1].seconds : $0 < $1
    }
    return (order.map { choices[$0].choice }, refusals)
  }

  /// The choice with this id, if it takes the problem.
  public func choice(id: String, for problem: Problem) -> TacticChoice? {
    candidates(problem).choices.first { $0.id == id }
  }

  private func pitchConflict(_ problem: Problem, _ tactic: any Tactic) -> String? {
    if !tactic.pitches.contains(.results), problem.outputs.contains(where: { $0.pitch != nil }) {
      return "rows of a result do not follow each other"
    }
    if !tactic.pitches.contains(.operands), problem.inputs.contains(where: { $0?.pitch != nil }) {
      return "rows of an operand do not follow each other"
    }
    return nil
  }

  private func packingConflict(_ problem: Problem, _ choice: TacticChoice) -> String? {
    let wanted = choice.tactic.packing(problem, choice.configuration)
    for (index, input) in problem.inputs.enumerated() {
      guard let stored = input?.packing else { continue }
      if wanted[index] != stored {
        return "operand \(index) is stored as \(stored)"
      }
    }
    return nil
  }
}
