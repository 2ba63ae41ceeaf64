// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Synchronization
import Testing

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
}
