// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import Synchronization

/// Runs the branches of a fork side by side: each lane has a stream of its own and takes the next branch that nobody has.
final class BranchTeam: LaneWork, @unchecked Sendable {
  // A lane's stream is touched by one task; what the lanes share is atomic or locked, or set before they begin.
  private let streams: [any ExecutionStream]
  private let next = Atomic<Int>(0)
  private let failure = Mutex<ApusError?>(nil)
  private var current: (fork: Fork, instance: PlanInstance)?

  init(backend: any Backend) throws(ApusError) {
    var streams: [any ExecutionStream] = []
    for _ in 0..<backend.laneCount { streams.append(try backend.makeStream()) }
    self.streams = streams
  }

  /// Launches all steps of a fork of a bound plan and waits for them.
  func run(_ fork: Fork, of instance: PlanInstance, on backend: any Backend) throws(ApusError) {
    next.store(0, ordering: .relaxed)
    current = (fork, instance)
    defer { current = nil }
    backend.concurrently(min(streams.count, fork.branches.count), self)
    let error = failure.withLock { error in
      defer { error = nil }
      return error
    }
    if let error { throw error }
  }

  func run(lane: Int) {
    guard let (fork, instance) = current else { return }
    do throws(ApusError) {
      while true {
        let branch = next.wrappingAdd(1, ordering: .relaxed).oldValue
        if branch >= fork.branches.count { break }
        for step in fork.branches[branch] { try instance.launch(step, on: streams[lane]) }
      }
      try streams[lane].synchronize()
    } catch {
      next.store(fork.branches.count, ordering: .relaxed)
      failure.withLock { if $0 == nil { $0 = error } }
    }
  }
}
