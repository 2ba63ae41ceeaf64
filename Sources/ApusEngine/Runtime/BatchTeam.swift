// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import Synchronization

/// Runs the members of a batch side by side: each lane has an arena and a stream of its own and takes the
/// next member that nobody has.
final class BatchTeam: LaneWork, @unchecked Sendable {
  // The lanes' mutable state is touched by one task each; what they share is atomic or locked.
  private let lanes: [Lane]
  private let repeats: Int
  private let next = Atomic<Int>(0)
  private let failure = Mutex<ApusError?>(nil)
  /// What the members are parts of, while they run.
  private var whole: PlanInstance?

  private struct Lane {
    let instance: PlanInstance
    let stream: any ExecutionStream
    let arena: DeviceMemory
  }

  init(_ plan: StaticPlan, backend: any Backend) throws(ApusError) {
    repeats = plan.repeats
    var lanes: [Lane] = []
    for _ in 0..<min(backend.laneCount, plan.repeats) {
      let arena = try backend.allocate(byteCount: max(64, plan.memory.peakByteCount))
      lanes.append(
        Lane(
          instance: PlanInstance(plan: plan, arena: arena), stream: try backend.makeStream(),
          arena: arena))
    }
    self.lanes = lanes
  }

  var arenaByteCount: Int { lanes.reduce(0) { $0 + $1.arena.byteCount } }

  /// Runs all members on the inputs and results that `instance` is bound to, and waits for them.
  func run(like instance: PlanInstance, on backend: any Backend) throws(ApusError) {
    next.store(0, ordering: .relaxed)
    whole = instance
    defer { whole = nil }
    backend.concurrently(lanes.count, self)
    let error = failure.withLock { error in
      defer { error = nil }
      return error
    }
    if let error { throw error }
  }

  func run(lane: Int) {
    guard let whole else { return }
    let lane = lanes[lane]
    do throws(ApusError) {
      while true {
        let member = next.wrappingAdd(1, ordering: .relaxed).oldValue
        if member >= repeats { break }
        lane.instance.bindPart(member, of: whole)
        try lane.instance.enqueue(on: lane.stream)
      }
      try lane.stream.synchronize()
    } catch {
      next.store(repeats, ordering: .relaxed)
      failure.withLock { if $0 == nil { $0 = error } }
    }
  }
}
