// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// How the rows of a tile share two sets of registers: while one holds the growing sums of some rows, the
/// epilogue empties the other.
///
/// Multiply-adds, conversions, packing and stores are work for different parts of a core. Where sums are
/// short, a tile that does one after the other leaves each of them idle for half of the time, and the
/// instructions that wait for one part fill the scheduler before those for the others are seen.
package struct TileOverlap: Hashable, Sendable {
  /// Rows whose sums grow together.
  package var rows: Int
  /// Where the words of K lie from the start of a row of A, in bytes; every step is written out.
  package var words: [Int]

  /// The place of a row among those that have registers.
  func place(of row: Int) -> Int { row % places }
  /// Rows that have registers.
  var places: Int { 2 * rows }

  /// Registers for elements of A, of those that neither sums nor B take.
  static func factorCount(_ registers: Int) -> Int { registers > 6 ? 2 : 1 }

  /// The longest sums: each row of a tile has code of its own.
  static let mostWords = 12
}

extension GemmTile {
  /// Whether registers are left for an epilogue beside the sums of so many columns.
  func leavesRegisters(
    for epilogue: ScalarExpr, operands: [EpilogueOperand], types: ProductTypes, columns: Int
  ) -> Bool {
    guard let sumsTogether else { return true }
    let used = max(1, min(vectors, (columns - 1) / ISA.avx512.lanes + 1))
    let registers = ISA.avx512.registerCount - 2 * max(1, sumsTogether / used) * used - used
    let (rest, _) = MicrokernelGenerator.start(epilogue, operands, types)
    guard registers > 1 else { return false }
    let packsBytes = used > 1 && types.result.bitWidth == 8
    let runs = try? MicrokernelGenerator.runsInPlace(
      rest, operands, types, packing: !packsBytes ? .truncating : types.stepsFit ? .packingInRange : .packing,
      isTail: columns % ISA.avx512.lanes != 0, isa: .avx512, in: registers - TileOverlap.factorCount(registers))
    return runs ?? false
  }
}

extension MicrokernelGenerator {
  /// rax and rbx stand at the start of A and B, r11 where the next lines of B are.
  func generate(_ overlap: TileOverlap) throws(ApusError) -> [UInt8] {
    let registers = free.dropFirst(shape.vectors)
    let factors = Array(registers.prefix(TileOverlap.factorCount(registers.count)))
    guard (1...TileOverlap.mostWords).contains(overlap.words.count), !shape.masksB, isa == .avx512,
      registers.count > 1, shape.kind != .int16, shape.terms == SumTerms()
    else { throw ApusError(.notYetSupported, "this product has no epilogue beside its sums") }
    a.push(.rbx)
    if let tail { a.prepareTail(tail, count: shape.lastColumns, scratch: .rax) }
    prepareBytes()
    let tile = a.here()
    a.mov(.rcx, argument(Microkernel.Argument.c))
    a.mov(.rbx, argument(Microkernel.Argument.b))
    a.mov(.rax, argument(Microkernel.Argument.a))
    if shape.linesAhead > 0 { a.mov(.r11, argument(Microkernel.Argument.ahead)) }
    let addresses = try loadOperandAddresses([.rsi, .r8, .r9, .r10])
    var before: Storing?
    for first in stride(from: 0, to: rows, by: overlap.rows) {
      let rows = first..<min(rows, first + overlap.rows)
      startSums(of: rows, from: startingOperand.map { addresses[$0] } ?? .rdx)
      try sum(rows, overlap, factors, between: before)
      before = try storing(rows, addresses, Array(registers.dropFirst(factors.count)))
      guard before != nil else {
        throw ApusError(.notYetSupported, "the epilogue needs more registers than are left")
      }
    }
    if let before { for piece in before.pieces { try write(piece, of: before) } }
    leaveLinesAhead(.r11, behind: overlap.words.count)
    goOn(to: tile)
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// The sums of some rows, and between the steps the epilogue of those before.
  private func sum(
    _ rows: Range<Int>, _ overlap: TileOverlap, _ factors: [Vec], between storing: Storing?
  ) throws(ApusError) {
    var written = 0
    for (k, word) in overlap.words.enumerated() {
      // The first rows of a tile fetch its share of what comes behind B.
      for line in 0..<(rows.lowerBound == 0 ? shape.linesAhead : 0) {
        a.prefetcht1(Address(.r11, 64 * (k * shape.linesAhead + line)))
      }
      step(rows, offsetInA: word, offsetInB: k * shape.panelBytes, factors: factors)
      guard let storing else { continue }
      let end = storing.pieces.count * (k + 1) / overlap.words.count
      for piece in storing.pieces[written..<end] { try write(piece, of: storing) }
      written = end
    }
  }
}
