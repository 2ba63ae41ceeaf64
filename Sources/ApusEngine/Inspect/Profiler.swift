// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

/// The time of each kernel in one run.
public struct KernelTime: Sendable {
  /// The node's name.
  public let name: String
  /// The nodes of the network that it computes.
  public let sources: [String]
  /// The tactic's id.
  public let tactic: String
  /// Seconds.
  public internal(set) var seconds: Double
  /// What the problem asks of the device, of all members of a batch together.
  public internal(set) var work: KernelWork

  /// Operations of the problem.
  public var operations: Double { work.operations }
  /// The bytes it reads and writes at least.
  public var bytes: Double { work.bytes }
}

extension ExecutionContext {
  /// Runs once with a clock around every kernel of the network's static plans.
  ///
  /// - Throws: as `run`.
  public func profile(_ inputs: [String: Tensor]) throws(ApusError) -> [KernelTime] {
    // Only the clock is read while kernels run: whatever else was done there would leave the caches to the next one
    // as no run does.
    var marks: [Mark] = []
    marks.reserveCapacity(4096)
    programRunner.observer = { (instance, step) throws(ApusError) in
      marks.append(Mark(plan: instance.plan, step: step, seconds: Clock.seconds))
    }
    defer { programRunner.observer = nil }
    _ = try run(inputs)
    return times(marks)
  }

  /// The moment before step `step` of a plan begins, which is the one behind the step before it.
  private struct Mark {
    let plan: StaticPlan
    let step: Int
    let seconds: Double
  }

  /// The time from each mark to the next; members of a batch and rounds of a loop add up.
  private func times(_ marks: [Mark]) -> [KernelTime] {
    var times: [KernelTime] = []
    var runs: [Int] = []
    var places: [ObjectIdentifier: Int] = [:]
    for (start, end) in zip(marks, marks.dropFirst()) where end.step == start.step + 1 {
      let first = places[ObjectIdentifier(start.plan)] ?? times.count
      places[ObjectIdentifier(start.plan)] = first
      let seconds = end.seconds - start.seconds
      if first + start.step < times.count {
        times[first + start.step].seconds += seconds
        runs[first + start.step] += 1
        continue
      }
      let done = start.plan.steps[start.step]
      times.append(
        KernelTime(
          name: done.nodeName, sources: done.sources, tactic: done.tacticID, seconds: seconds,
          work: KernelWork(done.problem)))
      runs.append(1)
    }
    for (index, count) in runs.enumerated() { times[index].work.multiply(by: count) }
    return times
  }
}
