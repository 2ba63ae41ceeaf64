// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Testing

import ApusCPU

@Suite struct TransposeTests {
  private let pool = ThreadPool(threadCount: 2)

  @Test(arguments: testedISAs) func everyElementMoves(isa: ISA) throws {
    for (rows, columns) in [(1, 1), (8, 8), (7, 9), (16, 24), (17, 33), (3, 200), (200, 3), (70, 64)] {
      let (inStride, outStride) = (columns + 3, rows + 5)
      let input = GuardedBuffer.random((rows - 1) * inStride + columns)
      let output = GuardedBuffer(count: (columns - 1) * outStride + rows) { _ in .nan }
      let kernel = try TransposeKernel(
        rows: rows, columns: columns, inStride: inStride, outStride: outStride, isa: isa)
      kernel.run(input.raw, output.raw, pool: pool)
      for row in 0..<rows {
        for column in 0..<columns {
          #expect(output[column * outStride + row] == input[row * inStride + column])
        }
        if columns > 1 { #expect(output[rows].isNaN) }
      }
    }
  }

  @Test(arguments: testedISAs) func packsTransposes(isa: ISA) throws {
    for (k, n, nr) in [(5, 3, 16), (64, 128, 64), (33, 70, 32), (8, 16, 16)] {
      let source = GuardedBuffer.random((n - 1) * (k + 2) + k)
      let count = PackedMatrix.byteCount(k: k, n: n, nr: nr) / 4
      let want = GuardedBuffer(count: count)
      let got = GuardedBuffer(count: count) { _ in .nan }
      PackedMatrix.pack(
        source.pointer, rowStride: 1, columnStride: k + 2, k: k, n: n, nr: nr, into: want.pointer)
      try TransposedPack(k: k, n: n, nr: nr, stride: k + 2, isa: isa).run(source.raw, into: got.raw)
      #expect((0..<count).allSatisfy { got[$0] == want[$0] })
    }
  }
}
