// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// Generated code that prepares rows of unsigned bytes, or 16-bit elements, as the left side of a product:
/// copies them filled up with zeros to whole words, and computes the term of each row for a zero point of
/// the right side, `-zero * sum over k of a`.
package final class LeftSideKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    /// Bytes of a row, and from one row to the next.
    package var usedBytes: Int
    package var rowBytes: Int
    /// Whether rows are copied; they then follow each other in whole words.
    package var copies: Bool
    /// The factor of the terms, which are computed when it is not zero.
    package var factor = 0

    /// Bytes of a copied row.
    package var copiedBytes: Int { (usedBytes + 3) / 4 * 4 }
    /// Whether there is nothing to do.
    package var isIdle: Bool { !copies && factor == 0 }
  }

  /// `(rows, copies, terms, number of rows)`
  private typealias Code = @convention(c) (Int, Int, Int, Int) -> Void

  private let memory: ExecutableMemory

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    guard ISA.current == .avx512, shape.usedBytes > 0, shape.rowBytes < 1 << 30 else {
      throw ApusError(.notYetSupported, "no kernel for the left side of this product")
    }
    memory = try ExecutableMemory(Generator(shape: shape).generate(), name: "left side")
  }

  /// Prepares `count` rows.
  package func run(rows: Int, copies: Int, terms: Int, count: Int) {
    guard count > 0 else { return }
    memory.function(as: Code.self)(rows, copies, terms, count)
  }

  private struct Generator {
    let shape: Shape
    let a = Assembler()
    let bytes = Vec(0, .zmm)
    let sum = Vec(1, .zmm)
    let other = Vec(2, .zmm)
    let ones = Vec(3, .zmm)
    let used = Mask(1)
    let stored = Mask(2)

    func generate() throws(ApusError) -> [UInt8] {
      let rest = shape.usedBytes % 64
      prepare(used, rest)
      prepare(stored, (rest + 3) / 4 * 4)
      a.vbroadcastss(ones, a.constant(words: [0x0101_0101]))
      let loop = a.here()
      a.mov(.r8, .rdi)
      a.mov(.r9, .rsi)
      a.vxorps(sum, sum, sum)
      if shape.usedBytes >= 64 {
        a.mov(.rax, shape.usedBytes / 64)
        let chunks = a.here()
        a.vmovups(bytes, Address(.r8))
        if shape.factor != 0 { a.vpdpbusd(sum, bytes, ones) }
        if shape.copies { a.vmovups(Address(.r9), bytes) }
        a.add(.r8, 64)
        a.add(.r9, 64)
        a.dec(.rax)
        a.j(.notEqual, chunks)
      }
      if rest > 0 {
        a.vmovdqu8(bytes, Address(.r8), mask: used)
        if shape.factor != 0 { a.vpdpbusd(sum, bytes, ones) }
        if shape.copies { a.vmovdqu8(Address(.r9), bytes, mask: stored) }
      }
      if shape.factor != 0 { storeTerm() }
      a.add(.rdi, shape.rowBytes)
      a.add(.rsi, shape.copiedBytes)
      a.add(.rdx, 4)
      a.dec(.rcx)
      a.j(.notEqual, loop)
      a.vzeroupper()
      a.ret()
      return try a.finish()
    }

    private func prepare(_ mask: Mask, _ count: Int) {
      a.mov(.rax, -1)
      a.mov(.r8, count)
      a.bzhi(.rax, .rax, .r8)
      a.kmovq(mask, .rax)
    }

    /// Adds the lanes up and multiplies the sum.
    private func storeTerm() {
      a.vextractf64x4(other.at(.ymm), sum, 1)
      a.vpaddd(sum.at(.ymm), sum.at(.ymm), other.at(.ymm))
      a.vextractf128(other.at(.xmm), sum.at(.ymm), 1)
      a.vpaddd(sum.at(.xmm), sum.at(.xmm), other.at(.xmm))
      a.vpermilps(other.at(.xmm), sum.at(.xmm), 0b01_00_11_10)
      a.vpaddd(sum.at(.xmm), sum.at(.xmm), other.at(.xmm))
      a.vpermilps(other.at(.xmm), sum.at(.xmm), 0b10_11_00_01)
      a.vpaddd(sum.at(.xmm), sum.at(.xmm), other.at(.xmm))
      a.vpbroadcastd(other.at(.xmm), a.constant(words: [UInt32(bitPattern: Int32(shape.factor))]))
      a.vpmulld(sum.at(.xmm), sum.at(.xmm), other.at(.xmm))
      a.vmovss(Address(.rdx), sum.at(.xmm))
    }
  }
}
