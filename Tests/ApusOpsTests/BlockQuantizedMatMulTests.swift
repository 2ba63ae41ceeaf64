// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct BlockQuantizedMatMulTests {
  private let numbers = try! i([1, 15, 8, 0, 9, 7], [3, 2], .uint4)

  @Test func eightStandsForZero() throws {
    // Two rows share scales, the third has its own.
    let scales = try f([1, 0.5, 2, 4], [2, 2])
    let y = try run(BlockQuantizedMatMul(block: 2), [try f([1, 2, 3], [1, 3]), numbers, scales])
    #expect(y[0].floats() == [-1, -16.5])
    #expect(y[0].shape == [1, 2])
  }

  @Test func zeroPointsAndHalfScales() throws {
    let scales = RuntimeValue.tensor(try Tensor([1.0, 0.5], .float16, shape: [1, 2]))
    let zeros = try i([0, 15], [1, 2], .uint8)
    let y = try run(
      BlockQuantizedMatMul(block: 8), [try f([1, 2, 3], [3]), numbers, scales, zeros])
    #expect(y[0].floats() == [44, -27])
    #expect(y[0].shape == [2])
  }

  @Test func operandsThatDoNotFitAreErrors() throws {
    let a = try f([1, 2, 3], [1, 3])
    let scales = try f([1, 1], [1, 2])
    #expect(refuses(BlockQuantizedMatMul(block: 2), [a, numbers, scales]))
    #expect(refuses(BlockQuantizedMatMul(block: 4), [a, numbers, scales, scales]))
    #expect(refuses(BlockQuantizedMatMul(block: 4), [try f([1], [1]), numbers, scales]))
    #expect(refuses(BlockQuantizedMatMul(block: 4), [a, a, scales]))
    #expect(refuses(BlockQuantizedMatMul(block: .max), [a, numbers]))
    var reader = AttributeReader(["block": .int(0)], for: "BlockQuantizedMatMul")
    #expect(throws: ApusError.self) { try BlockQuantizedMatMul(reading: &reader) }
  }
}
