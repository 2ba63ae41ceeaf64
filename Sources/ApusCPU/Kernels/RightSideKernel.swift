// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// Generated code that brings one vector of columns of a computed matrix into the order that products of
/// narrow elements read: words of several elements of one column, side by side.
///
/// Bytes are also centred: unsigned ones become signed, `b ^ 128 = b - 128`, and the term of each column
/// for a zero point of the left side is computed, `-left * sum over k of (b - zero)`.
package final class RightSideKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    /// Rows of the matrix.
    package var k: Int
    /// Bytes of an element: 1 or 2.
    package var elementBytes: Int
    /// Bytes from a row to the next; nil for words that are in place already.
    package var rowBytes: Int?
    /// Bytes from a word of a column to the next in the panel.
    package var panelBytes: Int
    /// Whether bytes are unsigned.
    package var isUnsigned = false
    /// The zero points of both sides.
    package var leftZero = 0
    package var rightZero = 0

    var elementsPerWord: Int { 4 / elementBytes }
    var hasTerms: Bool { leftZero != 0 }
    /// Whether there is nothing to do.
    var isIdle: Bool { rowBytes == nil && !isUnsigned && !hasTerms }
  }

  /// `(first row of the columns, panel, terms, bit mask of the columns that exist)`
  private typealias Code = @convention(c) (Int, Int, Int, Int) -> Void

  private let memory: ExecutableMemory
  private let shape: Shape

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    guard ISA.current == .avx512, shape.k > 0, shape.elementBytes == 1 || shape.elementBytes == 2,
      (shape.rowBytes ?? 0) * 4 < 1 << 30, shape.panelBytes < 1 << 30
    else {
      throw ApusError(.notYetSupported, "no kernel for the right side of this product")
    }
    self.shape = shape
    memory = try ExecutableMemory(Generator(shape: shape).generate(), name: "right side")
  }

  /// Prepares `columns` columns, at most 16.
  package func run(source: Int, panel: Int, terms: Int, columns: Int) {
    memory.function(as: Code.self)(source, panel, terms, (1 << columns) - 1)
  }

  private struct Generator {
    let shape: Shape
    let a = Assembler()
    let word = Vec(0, .zmm)
    let next = Vec(1, .zmm)
    let sums = Vec(2, .zmm)
    let ones = Vec(3, .zmm)
    let flip = Vec(4, .zmm)
    let exists = Mask(1)

    func generate() throws(ApusError) -> [UInt8] {
      a.kmovw(exists, .rcx)
      a.vxorps(sums, sums, sums)
      a.vbroadcastss(ones, a.constant(words: [0x0101_0101]))
      a.vbroadcastss(flip, a.constant(words: [0x8080_8080]))
      let whole = shape.k / shape.elementsPerWord
      if whole > 0 {
        a.mov(.rax, whole)
        let loop = a.here()
        step(elements: shape.elementsPerWord)
        if let rowBytes = shape.rowBytes { a.add(.rdi, rowBytes * shape.elementsPerWord) }
        a.add(.rsi, shape.panelBytes)
        a.dec(.rax)
        a.j(.notEqual, loop)
      }
      let rest = shape.k % shape.elementsPerWord
      if rest > 0 { step(elements: rest) }
      if shape.hasTerms { storeTerms() }
      a.vzeroupper()
      a.ret()
      return try a.finish()
    }

    /// One word of every column.
    private func step(elements: Int) {
      if let rowBytes = shape.rowBytes {
        for element in 0..<elements {
          let lanes = element == 0 ? word : next
          let place = Address(.rdi, element * rowBytes)
          if shape.elementBytes == 1 {
            a.vpmovzxbd(lanes, place, mask: exists)
          } else {
            a.vpmovzxwd(lanes, place, mask: exists)
          }
          if element > 0 {
            a.vpslld(next, next, UInt8(8 * shape.elementBytes * element))
            a.vorps(word, word, next)
          }
        }
      } else {
        a.vmovups(word, Address(.rsi))
      }
      if shape.isUnsigned {
        if elements < shape.elementsPerWord {
          // Rows that do not exist stay zero.
          let mask = UInt32(0x8080_8080) >> UInt32(8 * (shape.elementsPerWord - elements))
          a.vbroadcastss(flip, a.constant(words: [mask]))
        }
        a.vxorps(word, word, flip)
      }
      if shape.hasTerms { a.vpdpbusd(sums, ones, word) }
      a.vmovups(Address(.rsi), word)
    }

    private func storeTerms() {
      let zero = shape.rightZero - (shape.isUnsigned ? 128 : 0)
      a.vpbroadcastd(next, a.constant(words: [UInt32(bitPattern: Int32(-shape.leftZero))]))
      a.vpmulld(sums, sums, next)
      let whole = Int32(truncatingIfNeeded: shape.leftZero * zero * shape.k)
      a.vpbroadcastd(next, a.constant(words: [UInt32(bitPattern: whole)]))
      a.vpaddd(sums, sums, next)
      a.vmovups(Address(.rdx), sums)
    }
  }
}
