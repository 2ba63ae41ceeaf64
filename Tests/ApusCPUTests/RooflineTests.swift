// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import Testing

import ApusCPU

@Suite struct RooflineTests {
  private func product(_ type: DataType, m: Int, n: Int, k: Int) -> KernelWork {
    KernelWork(
      Problem(
        op: MatMul(sumType: type == .float32 ? nil : .int32),
        inputs: [operand(type, [m, k]), operand(type, [k, n])],
        outputs: [operand(type == .float32 ? .float32 : .int32, [m, n])]))
  }

  private func operand(_ type: DataType, _ shape: [Int]) -> Problem.Operand {
    Problem.Operand(dataType: type, shape: shape, constant: nil)
  }

  @Test func theSlowerOfArithmeticAndMemoryCounts() {
    let roof = Roofline(
      operations: [.float32: 1e9, .int8: 4e9],
      traffic: [.init(footprint: 1000, rate: 1e9), .init(footprint: .max, rate: 1e6)])
    let small = product(.float32, m: 4, n: 4, k: 4)
    #expect(small.operations == 128 && small.bytes == 192 && small.type == .float32)
    #expect(roof.leastSeconds(small) == 192 / 1e9)
    let bytes = product(.uint8, m: 64, n: 64, k: 64)
    #expect(bytes.type == .int8)
    // 524,288 operations take 0.13 ms, but 24,576 bytes from far away 25.
    #expect(roof.leastSeconds(bytes) == bytes.bytes / 1e6)
    let near = Roofline(operations: roof.operations, traffic: [.init(footprint: .max, rate: 1e12)])
    #expect(near.leastSeconds(bytes) == bytes.operations / 4e9)
  }

  @Test func theHostIsMeasured() throws {
    for threads in [1, 2] {
      let roof = try CPUBackend.shared(threadCount: threads).roofline()
      guard CPUDescription.isa != .portable else {
        #expect(roof == nil)
        continue
      }
      let found = try #require(roof)
      #expect(Set(found.operations.keys) == CPUDescription.fastTypes.intersection([.float32, .bfloat16, .int8]))
      #expect(found.operations.values.allSatisfy { $0 > 1e6 && $0.isFinite })
      #expect(found.traffic.count == 4 && found.traffic.last?.footprint == .max)
      #expect(found.traffic.allSatisfy { $0.rate > 1e6 && $0.rate.isFinite })
    }
  }
}
