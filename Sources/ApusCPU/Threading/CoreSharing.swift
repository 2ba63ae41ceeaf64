// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import CApusShims

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// How a worker shares its core with other programs without holding jobs up.
///
/// Where another program wants the core, the system takes it from the worker when its time slice ends and
/// gives it back as much later: 4 ms on, 4 ms off (Linux 6.18 with ticks of 4 ms). A worker that holds a task
/// then makes the job wait for it, which costs more than the worker contributes: beside a program that spins on
/// one of two cores, ResNet-50 took 33 ms on two threads and 28 ms on one.
///
/// So a worker gives its core up before its slice ends, while it holds no task. A thread that does so
/// is hardly ever interrupted inside of a task, and gets a share of the core all the same. Nothing has to find out
/// whether there is another program: a core that nobody else wants comes back at once, in the time of a system call.
///
/// The system evens out its queues, and so moves a worker from the core that it shares with another program to
/// the core of the calling thread, where it only takes time from that. A worker that finds itself there leaves.
///
/// With the first, ResNet-50 takes 25 ms beside that program; with both, 22 ms. If nothing were lost, it would
/// be 20 ms.
struct CoreSharing: Sendable {
  /// When the worker last got its core anew.
  private(set) var turn: Turn
  private var moves = MoveLimit()
  /// Whether there is a core for each thread, so that none has to be with the caller.
  private let maySeparate: Bool

  init(maySeparate: Bool) {
    self.maySeparate = maySeparate
    turn = Turn(at: Clock.seconds)
  }

  /// To be called after a sleep: the worker has its core anew.
  mutating func begin() { turn = Turn(at: Clock.seconds) }

  /// Gives the core up if it is time to. The worker must not be inside a job.
  mutating func giveWay() {
    guard turn.isOver(at: Clock.seconds) else { return }
    sched_yield()
    begin()
  }

  /// Leaves the core of the calling thread if this thread is on it.
  mutating func avoid(_ callersProcessor: Int32) {
    guard maySeparate else { return }
    let own = apus_current_processor()
    guard own >= 0, own == callersProcessor, moves.allows(at: Clock.seconds) else { return }
    _ = apus_leave_processor(own)
  }
}

/// The time a worker keeps its core before it gives others a chance.
package struct Turn: Sendable {
  /// Shorter than any time slice: Linux has slices of 0.7 ms to 3 ms that last to the next tick, which come 1 ms
  /// to 4 ms apart. Long against the system call and against tasks.
  package static let seconds = 1e-3

  package let start: Double

  package init(at now: Double) { start = now }

  package func isOver(at now: Double) -> Bool { now - start >= Self.seconds }
}

/// How often a worker changes cores: a move costs some 60 us, and the system may move it back at once.
package struct MoveLimit: Sendable {
  package static let seconds = 2e-3

  private var last = -Double.infinity

  package init() {}

  /// Whether a move at this time is allowed, which then is the last one.
  package mutating func allows(at now: Double) -> Bool {
    if now - last < Self.seconds { return false }
    last = now
    return true
  }
}
