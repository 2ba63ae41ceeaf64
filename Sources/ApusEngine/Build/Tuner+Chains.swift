// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Whether operators are computed together: a kernel for a chain competes with the chosen kernels of its
/// operators, which are run one after the other on tensors of the real sizes. That goes into the timing cache
/// like any other choice.
extension Tuner {
  /// What the timing cache names the operators' own kernels.
  private static let separate = "separate"
  /// Results of fewer bytes between operators stay in cache anyway.
  private static let smallResult = 192 << 10
  /// Without measurements only what is larger than half of a usual second-level cache is worth a chain.
  private static let largeResult = 512 << 10
  /// What a chain must be faster by. That is little, for in a network the tensors between the operators share the
  /// last-level cache with all others, while here they stay in it.
  private static let gain = 0.01

  /// Chooses for a chain whose operators' problems are `stages`, for which kernels are chosen already.
  ///
  /// - Returns: The tactic for the whole chain, or nil when its operators are to be computed one by one.
  /// - Throws: What compiling the operators' kernels throws.
  func tune(chain problem: Problem, _ stages: [Problem]) throws(ApusError)
    -> (choice: TacticChoice?, report: BuildReport.Tuned)
  {
    let device = library.selectionDevice
    let (all, refusals) = library.selector.candidates(problem)
    let generated = all.filter { $0.tactic.source != "portable" }
    let choices = try workspace?.fitting(generated, problem, library) ?? generated
    var report = BuildReport.Tuned(
      problem: problem.key, winner: Self.separate, measurements: [],
      refusals: refusals.map { ($0.tactic, $0.reason) }, fromCache: false,
      operations: problem.cost.operations, work: KernelWork(problem))
    let largest = stages.dropLast().reduce(0) { max($0, Self.byteCount($1.outputs[0])) }
    guard let first = choices.first, largest >= Self.smallResult else { return (nil, report) }
    if let entry = cache.entry(problem: problem.key, device: device),
      entry.version == first.tactic.version
    {
      let choice = choices.first { $0.id == entry.winner }
      if choice != nil || entry.winner == Self.separate {
        report.winner = entry.winner
        report.fromCache = true
        report.measurements = entry.measurements.map { ($0.id, $0.seconds) }
        return (choice, report)
      }
    }
    guard level > 0 else {
      let choice = largest > Self.largeResult ? first : nil
      report.winner = choice?.id ?? Self.separate
      return (choice, report)
    }
    if Clock.seconds > deadline { return (nil, report) }
    let choice = try fastest(choices, problem, stages, &report)
    report.winner = choice?.id ?? Self.separate
    // What won among fewer is no answer for builds without the limit.
    guard choices.count == generated.count else { return (choice, report) }
    cache.record(
      TimingCache.Entry(
        winner: report.winner, version: first.tactic.version,
        measurements: report.measurements.map { .init(id: $0.id, seconds: $0.seconds) }),
      problem: problem.key, device: device)
    return (choice, report)
  }

  /// Measures; nil when nothing is faster than the operators' own kernels.
  private func fastest(
    _ choices: [TacticChoice], _ problem: Problem, _ stages: [Problem],
    _ report: inout BuildReport.Tuned
  ) throws(ApusError) -> TacticChoice? {
    let sequence = try sequence(problem, stages)
    let bench = try KernelBench(problem: problem, library: library)
    try bench.expectResults(of: sequence)
    // Kernels that read weights in the order that was fastest for the operator alone come first.
    let likely = choices.filter {
      $0.tactic.packing(problem, $0.configuration) == sequence.packing
    }
    let constants = KernelBench.Constants(networkByteCount: weightByteCount)
    func measure(_ kernel: KernelLibrary.Compiled) throws(ApusError) -> Double {
      try bench.measure(
        kernel, best: nil, effort: level > 1 ? 0.02 : 0.005, constants: constants)
    }
    var own = try measure(sequence)
    var best: (choice: TacticChoice, seconds: Double)?
    for choice in (likely.isEmpty ? choices : likely).prefix(candidateLimit) {
      if Clock.seconds > deadline { break }
      do throws(ApusError) {
        let kernel = try library.compile(choice, problem)
        if let reason = try bench.disagreement(kernel) {
          report.refusals.append((choice.id, reason))
          Log.debug(1, "tactic \(choice.id) disagrees with the operators' kernels: \(reason)")
          continue
        }
        let seconds = try measure(kernel)
        report.measurements.append((choice.id, seconds))
        Log.debug(4, "\(choice.id) \(seconds * 1e6) us for \(problem.key)")
        if seconds < best?.seconds ?? .infinity { best = (choice, seconds) }
      } catch where error.code == .resourceLimit || error.code == .notYetSupported {
        report.refusals.append((choice.id, error.message))
      }
    }
    // Once more: what else the machine does must not decide.
    own = min(own, try measure(sequence))
    report.measurements.append((Self.separate, own))
    guard let best, best.seconds < own * (1 - Self.gain) else { return nil }
    return best.choice
  }

  /// The operators' own kernels as one, with the packing that they want.
  private func sequence(_ problem: Problem, _ stages: [Problem]) throws(ApusError)
    -> KernelLibrary.Compiled
  {
    guard let chain = problem.op as? Chain, let last = stages.last else {
      throw ApusError(.internalError, "\(problem.op.name) is no chain")
    }
    var kernels: [any Kernel] = []
    var packing: [Int: PackedLayout] = [:]
    for (index, stage) in stages.enumerated() {
      let compiled = try library.compile(try library.choose(stage), stage)
      kernels.append(compiled.kernel)
      for (operand, layout) in compiled.packing {
        packing[chain.operands(of: index).lowerBound + operand - 1] = layout
      }
    }
    return KernelLibrary.Compiled(
      kernel: SequenceKernel(
        chain, kernels: kernels, results: stages.map { Self.byteCount($0.outputs[0]) }),
      choice: try library.choose(last), inPlaceInputs: [], packing: packing)
  }

  private static func byteCount(_ operand: Problem.Operand) -> Int {
    operand.dataType.byteCount(of: operand.count) ?? .max
  }
}
