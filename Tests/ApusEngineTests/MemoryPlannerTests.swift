// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusEngine
import ApusKernel
import Testing

@Suite struct MemoryPlannerTests {
  @Test func buffersAliveTogetherNeverOverlap() {
    var generator = SeededGenerator(seed: 1)
    for _ in 0..<200 {
      let lifetimes = (0..<generator.integer(below: 40)).map { _ in
        let first = generator.integer(below: 30)
        return Lifetime(
          first: first, last: first + generator.integer(below: 10),
          byteCount: generator.integer(below: 5000))
      }
      let plan = MemoryPlanner.plan(lifetimes)
      #expect(plan.peakByteCount >= plan.lowerBoundByteCount)
      #expect(plan.peakByteCount <= plan.naiveByteCount)
      for (i, a) in lifetimes.enumerated() {
        for (j, b) in lifetimes.enumerated() where i < j && a.overlaps(b) {
          let apart =
            plan.offsets[i] + a.byteCount <= plan.offsets[j]
            || plan.offsets[j] + b.byteCount <= plan.offsets[i]
          #expect(apart, "\(a) at \(plan.offsets[i]) meets \(b) at \(plan.offsets[j])")
        }
      }
    }
  }

  @Test func aChainNeedsTwoBuffers() {
    let chain = (0..<10).map { Lifetime(first: $0, last: $0 + 1, byteCount: 640) }
    #expect(MemoryPlanner.plan(chain).peakByteCount == 1280)
  }
}
