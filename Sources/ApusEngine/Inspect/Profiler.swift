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
  public let work: KernelWork

  /// Operations of the problem.
  public var operations: Double { work.operations }
  /// The bytes it reads and writes at least.
  public var bytes: Double { work.bytes }
}

extension ExecutionContext {
  /// Runs once with a clock around every kernel of the first static plan.
  ///
  /// - Throws: as `run`.
  public func profile(_ inputs: [String: Tensor]) throws(ApusError) -> [KernelTime] {
    var times: [KernelTime] = []
    var last = 0.0
    programRunner.observer = { (instance, step) throws(ApusError) in
      let now = Clock.seconds
      if step > 0 {
        let done = instance.plan.steps[step - 1]
        var work = KernelWork(done.problem)
        work.multiply(by: instance.plan.repeats)
        // Members of a batch add up.
        if instance.plan.repeats > 1, times.count == instance.plan.steps.count {
          times[step - 1].seconds += now - last
        } else {
          times.append(
            KernelTime(
              name: done.nodeName, sources: done.sources, tactic: done.tacticID, seconds: now - last,
              work: work))
        }
      }
      last = Clock.seconds
    }
    defer { programRunner.observer = nil }
    _ = try run(inputs)
    return times
  }
}
