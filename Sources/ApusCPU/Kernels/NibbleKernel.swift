// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor
import ApusX86

/// A panel of four-bit weights with its scales, as generated code reads them: words of 32 bits hold
/// eight rows of a column, the first in the lowest bits.
package struct NibblePanel: Hashable, Sendable {
  /// Rows that share a scale; a multiple of eight.
  package var block: Int
  /// Vectors of columns from one row of the panel to the next.
  package var panelVectors: Int
  /// Vectors of columns in use.
  package var vectors: Int
  /// Rows behind the last whole block.
  package var rest: Int
  /// Whether scales are of half precision.
  package var hasHalfScales: Bool
  /// Whether there are zero points, bytes; 8 is what stands for zero otherwise.
  package var hasZeros: Bool

  /// The most rows of A whose sums fit the registers: those of a block, those of all, and A's own where
  /// there are zero points.
  package var rowLimit: Int { (32 - Self.otherRegisters) / (2 * vectors + (hasZeros ? 1 : 0)) }
  /// Registers for the table, words and numbers.
  static let otherRegisters = 5

  /// Bytes of a word of every column.
  var wordBytes: Int { panelVectors * 64 }
  /// Bytes of the scales and of the zero points of a block.
  var scaleBytes: Int { panelVectors * 16 * (hasHalfScales ? 2 : 4) }
  var zeroBytes: Int { panelVectors * 16 }
}

/// What generated code does with a panel.
package enum NibbleUse: Hashable, Sendable {
  /// Products with rows of A, their starts so many bytes apart; results row by row, as wide as the panel.
  case product(rows: Int, strideOfA: Int)
  /// The weights in single precision, row by row, as wide as the panel.
  case unpack
}

/// Generated code that reads a panel of four-bit weights with AVX-512: a shift brings a number to the
/// lowest bits of its lane, a permutation looks its float up.
package final class NibbleKernel: Sendable {
  /// Words of the argument block.
  package enum Argument {
    package static let a = 0
    package static let words = 1
    package static let scales = 2
    package static let zeros = 3
    package static let result = 4
    /// Whole blocks, and whether the rest behind them follows (0 or 1).
    package static let blocks = 5
    package static let hasRest = 6
    package static let count = 7
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ panel: NibblePanel, _ use: NibbleUse) throws(ApusError) {
    memory = try ExecutableMemory(
      NibbleGenerator(panel, use).generate(), name: "four-bit weights \(panel.vectors) \(use)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

/// Writes the code. rax walks A, rbx words, rcx scales, rdx zero points, rsi results; r8 counts blocks.
private struct NibbleGenerator {
  let panel: NibblePanel
  let use: NibbleUse
  let a = Assembler()
  let rows: Int
  let strideOfA: Int

  init(_ panel: NibblePanel, _ use: NibbleUse) throws(ApusError) {
    self.panel = panel
    self.use = use
    if case .product(let rows, let stride) = use {
      (self.rows, strideOfA) = (rows, stride)
    } else {
      (rows, strideOfA) = (0, 0)
    }
    guard panel.block > 0, panel.block % 8 == 0, (1...4).contains(panel.vectors),
      rows <= panel.rowLimit
    else { throw ApusError(.notYetSupported, "blocks of \(panel.block) four-bit weights") }
  }

  // Registers: the table, two at a time for words and numbers, then sums of A, of blocks and of all.
  private var table: Vec { .zmm(0) }
  private func word(_ vector: Int) -> Vec { .zmm(1 + vector % 2) }
  private func number(_ index: Int) -> Vec { .zmm(3 + index % 2) }
  private var firstSum: Int { NibblePanel.otherRegisters + (panel.hasZeros ? rows : 0) }
  private func sumOfA(_ row: Int) -> Vec { .zmm(NibblePanel.otherRegisters + row) }
  private func blockSum(_ row: Int, _ vector: Int) -> Vec {
    .zmm(firstSum + row * panel.vectors + vector)
  }
  private func sum(_ row: Int, _ vector: Int) -> Vec {
    .zmm(firstSum + (rows + row) * panel.vectors + vector)
  }
  // Unpacking has no sums.
  private func scale(_ vector: Int) -> Vec { .zmm(8 + vector) }
  private func zero(_ vector: Int) -> Vec { .zmm(12 + vector) }

  func generate() throws(ApusError) -> [UInt8] {
    typealias Argument = NibbleKernel.Argument
    func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }
    a.push(.rbx)
    a.mov(.rax, argument(Argument.a))
    a.mov(.rbx, argument(Argument.words))
    a.mov(.rcx, argument(Argument.scales))
    a.mov(.rdx, argument(Argument.zeros))
    a.mov(.rsi, argument(Argument.result))
    a.mov(.r8, argument(Argument.blocks))
    a.vmovups(table, a.constant(words: (0..<16).map { Float($0 - 8).bitPattern }))
    for row in 0..<rows {
      for vector in 0..<panel.vectors {
        a.vxorps(sum(row, vector), sum(row, vector), sum(row, vector))
      }
    }
    let rest = a.label()
    let done = a.label()
    a.test(.r8, .r8)
    a.j(.equal, rest)
    a.align(32)
    let loop = a.here()
    block(rows: panel.block)
    a.dec(.r8)
    a.j(.notEqual, loop)
    a.bind(rest)
    if panel.rest > 0 {
      a.mov(.r8, argument(Argument.hasRest))
      a.test(.r8, .r8)
      a.j(.equal, done)
      block(rows: panel.rest)
    }
    a.bind(done)
    for row in 0..<rows {
      for vector in 0..<panel.vectors {
        a.vmovups(Address(.rsi, (row * panel.panelVectors + vector) * 64), sum(row, vector))
      }
    }
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// One block of `count` rows: a loop over four words at a time, then single words.
  private func block(rows count: Int) {
    if use == .unpack { loadScales() } else { clearBlockSums() }
    let (chunks, rest) = count.quotientAndRemainder(dividingBy: 32)
    if chunks > 0 {
      if chunks > 1 { a.mov(.r9, chunks) }
      let loop = a.here()
      for _ in 0..<4 { word(rows: 8) }
      if chunks > 1 {
        a.dec(.r9)
        a.j(.notEqual, loop)
      }
    }
    for first in stride(from: 0, to: rest, by: 8) { word(rows: min(8, rest - first)) }
    if use != .unpack { addBlock() }
    a.add(.rcx, panel.scaleBytes)
    if panel.hasZeros { a.add(.rdx, panel.zeroBytes) }
  }

  private func word(rows count: Int) {
    if use == .unpack { unpack(count) } else { multiply(count) }
    a.add(.rbx, panel.wordBytes)
  }

  /// Row `index` of a word as floats, less 8.
  private func look(_ target: Vec, _ word: Vec, _ index: Int) {
    if index == 0 {
      a.vpermd(target, word, table)
    } else {
      a.vpsrld(target, word, UInt8(4 * index))
      a.vpermd(target, target, table)
    }
  }

  private func loadScale(_ target: Vec, _ vector: Int) {
    if panel.hasHalfScales {
      a.vcvtph2ps(target, Address(.rcx, vector * 32))
    } else {
      a.vmovups(target, Address(.rcx, vector * 64))
    }
  }

  /// Zero points less 8, which the table takes away.
  private func loadZero(_ target: Vec, _ vector: Int) {
    a.vpmovzxbd(target, Address(.rdx, vector * 16))
    a.vpsubd(target, target, a.constant(8, .zmm))
    a.vcvtdq2ps(target, target)
  }

  // MARK: Products

  private func clearBlockSums() {
    for row in 0..<rows {
      if panel.hasZeros { a.vxorps(sumOfA(row), sumOfA(row), sumOfA(row)) }
      for vector in 0..<panel.vectors {
        a.vxorps(blockSum(row, vector), blockSum(row, vector), blockSum(row, vector))
      }
    }
  }

  /// Adds products of the rows of a word to the sums of the block.
  private func multiply(_ count: Int) {
    func element(_ row: Int, _ index: Int) -> Address {
      Address(.rax, row * strideOfA + 4 * index).broadcasting
    }
    if panel.hasZeros {
      for row in 0..<rows {
        for index in 0..<count { a.vaddps(sumOfA(row), sumOfA(row), element(row, index)) }
      }
    }
    for vector in 0..<panel.vectors {
      a.vmovups(word(vector), Address(.rbx, vector * 64))
      for index in 0..<count {
        let weight = number(index)
        look(weight, word(vector), index)
        for row in 0..<rows { a.vfmadd231ps(blockSum(row, vector), weight, element(row, index)) }
      }
    }
    a.add(.rax, 4 * count)
  }

  /// Adds the sums of a block, scaled, to those of all.
  private func addBlock() {
    for vector in 0..<panel.vectors {
      if panel.hasZeros {
        loadZero(number(0), vector)
        for row in 0..<rows { a.vfnmadd231ps(blockSum(row, vector), number(0), sumOfA(row)) }
      }
      loadScale(number(1), vector)
      for row in 0..<rows { a.vfmadd231ps(sum(row, vector), blockSum(row, vector), number(1)) }
    }
  }

  // MARK: Unpacking

  private func loadScales() {
    for vector in 0..<panel.vectors {
      loadScale(scale(vector), vector)
      if panel.hasZeros { loadZero(zero(vector), vector) }
    }
  }

  private func unpack(_ count: Int) {
    for vector in 0..<panel.vectors {
      a.vmovups(word(vector), Address(.rbx, vector * 64))
      for index in 0..<count {
        let weight = number(index)
        look(weight, word(vector), index)
        if panel.hasZeros { a.vsubps(weight, weight, zero(vector)) }
        a.vmulps(weight, weight, scale(vector))
        a.vmovups(Address(.rsi, index * panel.wordBytes + vector * 64), weight)
      }
    }
    a.add(.rsi, count * panel.wordBytes)
  }
}
