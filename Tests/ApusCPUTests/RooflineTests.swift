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
    #expect(small.operationsByType == [.float32: 128] && small.bytes == 192)
    #expect(roof.leastSeconds(small) == 192 / 1e9)
    let bytes = product(.uint8, m: 64, n: 64, k: 64)
    #expect(Array(bytes.operationsByType.keys) == [.int8])
    // 524,288 operations take 0.13 ms, but 24,576 bytes from far away 25.
    #expect(roof.leastSeconds(bytes) == bytes.bytes / 1e6)
    let near = Roofline(operations: roof.operations, traffic: [.init(footprint: .max, rate: 1e12)])
    #expect(near.leastSeconds(bytes) == bytes.operations / 4e9)
  }

  @Test func eachStageOfAChainCountsByItsType() throws {
    let window = Conv(strides: [1, 1], pads: [1, 1, 1, 1], group: 4, channelsLast: true)
    let product = Conv(channelsLast: true, sumType: .float32)
    let filters = try Tensor([Float](repeating: 1, count: 36), shape: [3, 3, 1, 4])
    let weights = try Tensor([Float](repeating: 1, count: 12), shape: [1, 1, 4, 3]).converted(to: .bfloat16)
    let work = KernelWork(
      Problem(
        op: Chain(
          [
            Fused(anchor: window, anchorInputCount: 2, epilogue: Epilogue(.cast(.input(0), .bfloat16), extraCount: 0)),
            product,
          ], operandCounts: [1, 1]),
        inputs: [
          operand(.float32, [1, 5, 5, 4]),
          Problem.Operand(dataType: .float32, shape: [3, 3, 1, 4], constant: filters),
          Problem.Operand(dataType: .bfloat16, shape: [1, 1, 4, 3], constant: weights),
        ],
        outputs: [operand(.float32, [1, 5, 5, 3])]))
    #expect(Set(work.operationsByType.keys) == [.float32, .bfloat16])
    #expect(work.operationsByType[.float32]! >= 25 * 4 * 18 && work.operationsByType[.bfloat16]! >= 25 * 3 * 8)
    #expect(abs(work.operations - work.operationsByType.values.reduce(0, +)) < 1e-9)
    let roof = Roofline(
      operations: [.float32: 1e9, .bfloat16: 2e9], traffic: [.init(footprint: .max, rate: 1e12)])
    let least = work.operationsByType[.float32]! / 1e9 + work.operationsByType[.bfloat16]! / 2e9
    #expect(abs(roof.leastSeconds(work) - least) < 1e-15)
  }

  @Test func theHostIsMeasured() throws {
    for threads in [1, 2] {
      let roof = try CPUBackend.shared(threadCount: threads).roofline(seconds: 0.001)
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
