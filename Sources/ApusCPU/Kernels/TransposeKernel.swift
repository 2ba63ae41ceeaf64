// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// A generated transposition of matrices of 4-byte elements: `out[c][r] = in[r][c]`, in blocks of
/// 8 x 8 held in registers.
package final class TransposeKernel: Sendable {
  private let memory: ExecutableMemory
  private let rows: Int
  private let columns: Int
  private let inStride: Int
  private let outStride: Int
  /// Whether blocks below each other are done before those beside each other: lines of memory that are far
  /// apart, and may all fall into one set of a cache, are then written as wholes.
  private let goesDown: Bool

  /// `(in, out, blocks)`: the first block's places, and how many there are in the direction of the loop.
  private typealias Code = @convention(c) (
    UnsafeRawPointer, UnsafeMutableRawPointer, Int
  ) -> Void

  /// A kernel for `rows` x `columns` elements with row strides `inStride` and `outStride`, in
  /// elements.
  package init(rows: Int, columns: Int, inStride: Int, outStride: Int, isa: ISA = .current)
    throws(ApusError)
  {
    guard isa != .portable, rows > 0, columns > 0 else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    self.rows = rows
    self.columns = columns
    self.inStride = inStride
    self.outStride = outStride
    goesDown = outStride > inStride
    memory = try ExecutableMemory(
      Self.generate(inStride: inStride * 4, outStride: outStride * 4, goesDown: goesDown),
      name: "transpose")
  }

  /// Transposes one matrix on the calling thread.
  package func run(_ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer) {
    run(input, output, rows: 0..<rows)
  }

  /// Transposes with the rows of the input shared out between threads.
  package func run(
    _ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer, pool: ThreadPool
  ) {
    // Tasks of whole blocks of 16 rows: a cache line of the output each.
    let perTask = max(16, (65536 / columns + 15) / 16 * 16)
    pool.parallelFor((rows + perTask - 1) / perTask, (self, input, output, perTask)) { context, task in
      let (kernel, input, output, perTask) = context
      kernel.run(input, output, rows: task * perTask..<min(kernel.rows, (task + 1) * perTask))
    }
  }

  private func run(
    _ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer, rows range: Range<Int>
  ) {
    let code = memory.function(as: Code.self)
    let blocks = columns / 8
    let row = range.lowerBound + range.count / 8 * 8
    if goesDown {
      for first in stride(from: range.lowerBound, to: row, by: Self.rowsDown) {
        let count = (min(row, first + Self.rowsDown) - first) / 8
        for block in 0..<blocks {
          code(
            input + (first * inStride + block * 8) * 4, output + (block * 8 * outStride + first) * 4,
            count)
        }
      }
    } else {
      for start in stride(from: 0, to: blocks, by: Self.blocksAcross) {
        let count = min(blocks - start, Self.blocksAcross)
        for first in stride(from: range.lowerBound, to: row, by: 8) {
          code(
            input + (first * inStride + start * 8) * 4, output + (start * 8 * outStride + first) * 4,
            count)
        }
      }
    }
    // The edges: rows behind the last block, columns behind the last block.
    let from = input.assumingMemoryBound(to: Float.self)
    let to = output.assumingMemoryBound(to: Float.self)
    for r in range {
      let first = r < row ? blocks * 8 : 0
      for c in first..<max(first, columns) { to[c * outStride + r] = from[r * inStride + c] }
    }
  }

  /// Rows that are finished before the next ones: the second half of a line is still in the first-level
  /// cache when its turn comes, even where lines share few sets.
  private static let rowsDown = 64
  /// Blocks of columns that are finished in all rows before the next ones: the lines they write stay in the
  /// second-level cache.
  private static let blocksAcross = 32

  /// `rdx` blocks of eight rows and columns.
  private static func generate(inStride: Int, outStride: Int, goesDown: Bool) throws(ApusError)
    -> [UInt8]
  {
    let a = Assembler()
    func y(_ number: Int) -> Vec { .ymm(number) }
    let loop = a.here()
    for row in 0..<8 { a.vmovups(y(row), Address(.rdi, row * inStride)) }
    // Pairs of rows, then groups of four, then the halves.
    for pair in 0..<4 {
      a.vunpcklps(y(8 + 2 * pair), y(2 * pair), y(2 * pair + 1))
      a.vunpckhps(y(9 + 2 * pair), y(2 * pair), y(2 * pair + 1))
    }
    for half in 0..<2 {
      let base = 8 + 4 * half
      let out = 4 * half
      a.vshufps(y(out), y(base), y(base + 2), 0x44)
      a.vshufps(y(out + 1), y(base), y(base + 2), 0xEE)
      a.vshufps(y(out + 2), y(base + 1), y(base + 3), 0x44)
      a.vshufps(y(out + 3), y(base + 1), y(base + 3), 0xEE)
    }
    for column in 0..<4 {
      a.vperm2f128(y(8 + column), y(column), y(column + 4), 0x20)
      a.vperm2f128(y(12 + column), y(column), y(column + 4), 0x31)
    }
    for column in 0..<8 { a.vmovups(Address(.rsi, column * outStride), y(8 + column)) }
    a.add(.rdi, goesDown ? 8 * inStride : 32)
    a.add(.rsi, goesDown ? 32 : 8 * outStride)
    a.dec(.rdx)
    a.j(.notEqual, loop)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }
}

/// Packs a matrix given by its transpose (N x K rows) into panels; what computed right sides of
/// products need.
package final class TransposedPack: Sendable {
  private let whole: TransposeKernel?
  private let last: TransposeKernel?
  private let n: Int
  private let k: Int
  private let nr: Int
  private let stride: Int

  /// Rows of the source are `stride` elements apart.
  package init(k: Int, n: Int, nr: Int, stride: Int, isa: ISA = .current) throws(ApusError) {
    self.n = n
    self.k = k
    self.nr = nr
    self.stride = stride
    whole =
      n >= nr
      ? try TransposeKernel(rows: nr, columns: k, inStride: stride, outStride: nr, isa: isa) : nil
    last =
      n % nr != 0
      ? try TransposeKernel(rows: n % nr, columns: k, inStride: stride, outStride: nr, isa: isa)
      : nil
  }

  /// Packs on the calling thread; same result as `PackedMatrix.pack` of the transpose.
  package func run(_ source: UnsafeRawPointer, into packed: UnsafeMutableRawPointer) {
    for panel in 0..<n / nr {
      whole?.run(source + panel * nr * stride * 4, packed + panel * nr * k * 4)
    }
    guard let last else { return }
    let first = n / nr * nr
    let target = packed + first * k * 4
    last.run(source + first * stride * 4, target)
    let floats = target.assumingMemoryBound(to: Float.self)
    for row in 0..<k {
      for column in n - first..<nr { floats[row * nr + column] = 0 }
    }
  }
}
