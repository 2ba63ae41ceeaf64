// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Chooses a tactic for every problem: each candidate must first agree with the reference, then the
/// fastest measured one wins. Results are remembered in a timing cache.
struct Tuner {
  let library: KernelLibrary
  let cache: TimingCache
  let level: Int
  let workspace: WorkspaceLimit?
  /// The clock value after which nothing more is measured.
  let deadline: Double
  /// Bytes of all the network's weights.
  let weightByteCount: Int

  /// How many candidates each level measures.
  var candidateLimit: Int { [1, 3, 5, 8, 16, .max][max(0, min(5, level))] }

  /// The outcome for one problem.
  struct Outcome {
    var choice: TacticChoice
    var report: BuildReport.Tuned
    var timed: Int
  }

  /// Chooses for a problem.
  ///
  /// - Throws: `unsupported-operator` when no tactic takes the problem.
  func tune(_ problem: Problem) throws(ApusError) -> Outcome {
    let device = library.selectionDevice
    var (choices, refusals) = library.selector.candidates(problem)
    var report = BuildReport.Tuned(
      problem: problem.key, winner: "", measurements: [],
      refusals: refusals.map { ($0.tactic, $0.reason) }, fromCache: false,
      operations: problem.cost.operations, work: KernelWork(problem))
    // Before the timing cache is asked, which may come from a build without a limit.
    let outside = workspace?.divide(choices, problem)
    if let outside {
      choices = outside.fitting
      report.refusals += outside.refusals
    }
    if let entry = cache.entry(problem: problem.key, device: device),
      let choice = choices.first(where: { $0.id == entry.winner }),
      choice.tactic.version == entry.version
    {
      report.winner = choice.id
      report.fromCache = true
      report.measurements = entry.measurements.map { ($0.id, $0.seconds) }
      return Outcome(choice: choice, report: report, timed: 0)
    }
    guard let first = choices.first else {
      _ = try library.choose(problem); throw noChoice(problem)
    }
    var best: Candidate?
    var measured: [Candidate] = []
    var timed = 0
    if level > 0 {
      let bench = try KernelBench(problem: problem, library: library)
      for choice in preselected(choices, problem) {
        if best != nil && Clock.seconds > deadline { break }
        do {
          // Nothing to choose; what takes problems alone is the reference itself.
          if choices.count == 1 && choice.tactic.source == "portable" {
            best = Candidate(choice: choice, seconds: 0)
            break
          }
          // The portable tactic is the reference itself and only ever a last resort.
          if choice.tactic.source == "portable", best != nil { continue }
          let kernel = try library.compile(choice, problem)
          if let reason = try bench.disagreement(kernel) {
            report.refusals.append((choice.id, reason))
            Log.debug(1, "tactic \(choice.id) disagrees with the reference: \(reason)")
            continue
          }
          if choices.count == 1 {
            best = Candidate(choice: choice, seconds: 0)
            break
          }
          let seconds = try bench.measure(
            kernel, best: best?.seconds, effort: level > 1 ? 0.02 : 0.005,
            constants: KernelBench.Constants(networkByteCount: weightByteCount))
          timed += 1
          report.measurements.append((choice.id, seconds))
          Log.debug(4, "\(choice.id) \(seconds * 1e6) us for \(problem.key)")
          let candidate = Candidate(choice: choice, kernel: kernel, seconds: seconds)
          measured.append(candidate)
          if seconds < best?.seconds ?? .infinity { best = candidate }
        } catch
          where error.code == .resourceLimit || error.code == .notYetSupported
          || error.code == .execution
        {
          report.refusals.append((choice.id, error.message))
        }
      }
      if level > 1, bench.packsOften {
        let close = try measureInTurns(measured, bench)
        for candidate in close {
          let place = report.measurements.firstIndex { $0.id == candidate.choice.id }
          if let place { report.measurements[place].seconds = candidate.seconds }
        }
        best = close.first ?? best
      }
    }
    let choice = best?.choice ?? fallback(choices, report) ?? first
    report.winner = choice.id
    // What won among fewer is no answer for builds without the limit.
    if level > 0, outside?.refusals.isEmpty ?? true {
      cache.record(
        TimingCache.Entry(
          winner: choice.id, version: choice.tactic.version,
          measurements: report.measurements.map { .init(id: $0.id, seconds: $0.seconds) }),
        problem: problem.key, device: device)
    }
    return Outcome(choice: choice, report: report, timed: timed)
  }

  private struct Candidate {
    var choice: TacticChoice
    var kernel: KernelLibrary.Compiled?
    var seconds: Double
  }

  /// Measures those that came close in turns: what the machine did while one of them was measured, or how fast its
  /// clock went, must not decide.
  ///
  /// - Returns: The fastest first; none where nobody came close, or there is no time.
  private func measureInTurns(_ measured: [Candidate], _ bench: KernelBench) throws(ApusError) -> [Candidate] {
    let least = measured.map(\.seconds).min() ?? 0
    var close = measured.filter { $0.seconds <= least * Self.closeness }
    close = Array(close.sorted { $0.seconds < $1.seconds }.prefix(Self.mostInTurns))
    guard close.count > 1 else { return [] }
    let constants = KernelBench.Constants(networkByteCount: weightByteCount)
    for index in close.indices { close[index].seconds = .infinity }
    for turn in 1...Self.mostTurns {
      for index in close.indices {
        if Clock.seconds > deadline { return [] }
        guard let kernel = close[index].kernel else { continue }
        let seconds = try bench.measure(kernel, best: nil, runs: 4, effort: 0, constants: constants)
        close[index].seconds = min(close[index].seconds, seconds)
      }
      close.sort { $0.seconds < $1.seconds }
      if turn > 1, close[1].seconds > close[0].seconds * Self.clearly { break }
    }
    return close
  }

  /// How far behind the fastest a candidate may be and still be measured again, and by how much it must lead in the end
  /// to win before all turns.
  private static let (closeness, clearly) = (1.2, 1.05)
  private static let (mostInTurns, mostTurns) = (3, 3)

  /// The best estimated candidates, those with the same packing together, always with the portable
  /// one behind them.
  private func preselected(_ choices: [TacticChoice], _ problem: Problem) -> [TacticChoice] {
    let fast = choices.filter { $0.tactic.source != "portable" }
    let slow = choices.filter { $0.tactic.source == "portable" }
    // Packing a hundred megabytes for every candidate costs more than a kernel that reads them once
    // per run can win.
    let weights = problem.inputs.reduce(0) { $0 + ($1?.constant?.byteCount ?? 0) }
    let limit = weights > Self.largeWeights && level < 5 ? min(2, candidateLimit) : candidateLimit
    let best = Array(fast.prefix(limit))
    let packings = best.map { $0.tactic.packing(problem, $0.configuration) }
    let order = best.indices.sorted { a, b in
      let (first, second) = (
        packings.firstIndex(of: packings[a]), packings.firstIndex(of: packings[b])
      )
      return (first ?? 0, a) < (second ?? 0, b)
    }
    return order.map { best[$0] } + slow
  }

  private static let largeWeights = 32 << 20

  /// The first choice that was not caught disagreeing with the reference.
  private func fallback(_ choices: [TacticChoice], _ report: BuildReport.Tuned) -> TacticChoice? {
    choices.first { choice in !report.refusals.contains { $0.id == choice.id } }
  }

  private func noChoice(_ problem: Problem) -> ApusError {
    ApusError(.unsupportedOperator, "no tactic takes \(problem.key)")
  }
}
