// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Synchronization
import Testing

import ApusBase
import ApusCPU

@Suite struct ThreadPoolTests {
  @Test func everyTaskRunsOnce() {
    let pool = ThreadPool(threadCount: 4)
    for count in [0, 1, 2, 3, 17, 1000] {
      let total = Atomic<Int>(0)
      pool.parallelFor(count, ()) { _, task in
        total.wrappingAdd(task + 1, ordering: .relaxed)
      }
      #expect(total.load(ordering: .relaxed) == count * (count + 1) / 2)
    }
  }

  @Test func manyShortJobsAndPauses() {
    let pool = ThreadPool(threadCount: 3)
    let total = Atomic<Int>(0)
    for round in 0..<20_000 {
      pool.parallelFor(3, ()) { _, _ in total.wrappingAdd(1, ordering: .relaxed) }
      if round % 5000 == 0 {
        var waste = 0.0
        for index in 0..<300_000 { waste += Double(index).squareRoot() }
        #expect(waste > 0)
      }
    }
    #expect(total.load(ordering: .relaxed) == 60_000)
  }

  @Test func nestedCallsRunInline() {
    let pool = ThreadPool(threadCount: 2)
    let total = Atomic<Int>(0)
    pool.parallelFor(4, ()) { _, _ in
      pool.parallelFor(5, ()) { _, _ in
        total.wrappingAdd(1, ordering: .relaxed)
      }
    }
    #expect(total.load(ordering: .relaxed) == 20)
  }

  @Test func workersWhoseTurnIsOverLoseNoTask() {
    // Each task takes a turn, so that workers leave after every one and come back to the same job.
    let pool = ThreadPool(threadCount: 3)
    let runs = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 20)
    for task in 0..<20 { (runs + task).initialize(to: Atomic(0)) }
    for _ in 0..<3 {
      pool.parallelFor(20, runs) { runs, task in
        let start = Clock.seconds
        while Clock.seconds - start < Turn.seconds {}
        runs[task].wrappingAdd(1, ordering: .relaxed)
      }
    }
    for task in 0..<20 { #expect(runs[task].load(ordering: .relaxed) == 3) }
    runs.deinitialize(count: 20)
    runs.deallocate()
  }

  @Test func turnEndsAfterItsTime() {
    let turn = Turn(at: 100)
    #expect(!turn.isOver(at: 100))
    #expect(!turn.isOver(at: 100 + Turn.seconds * 0.9))
    #expect(turn.isOver(at: 100 + Turn.seconds * 1.1))
  }

  @Test func movesAreApart() {
    var moves = MoveLimit()
    // A refusal (the second) does not put the next move off.
    let allowed = [0, 0.9, 1.1, 1.2].map { moves.allows(at: $0 * MoveLimit.seconds) }
    #expect(allowed == [true, false, true, false])
  }
}
