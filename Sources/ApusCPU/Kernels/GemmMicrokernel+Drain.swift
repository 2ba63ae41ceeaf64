// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// How a tile empties its registers while its last sums still grow.
///
/// All sums of a tile that goes through K word by word are complete at once, and the core, which sees some hundred
/// instructions ahead, has nothing but epilogues to do then: its multipliers wait. So some rows at a time go through
/// the last words of K, and their epilogue stands between the multiply-adds of the next ones.
struct TileDrain {
  /// Words of K that are left to it.
  let words: Int
  /// Rows that are gone through together, so that a multiply-add need not wait for the one before it.
  let rows: Int
  /// The register for elements of A, and those for the epilogue.
  let factor: Vec
  let free: [Vec]

  /// Nil where the shape has nothing for it, or the epilogue needs more registers.
  init?(_ generator: MicrokernelGenerator) throws(ApusError) {
    let shape = generator.shape
    words = shape.lastWords
    rows = (Self.sums + shape.vectors - 1) / shape.vectors
    // With one vector in a row every multiply-add would wait for two loads.
    guard words > 0, shape.vectors > 1, generator.rows > rows,
      shape.operands.count <= Self.addressRegisters.count, let factor = generator.free.first
    else { return nil }
    self.factor = factor
    free = Array(generator.free.dropFirst())
    guard try generator.runsInPlace(in: free.count) else { return nil }
  }

  /// Sums that hide how long a multiply-add takes: four cycles, two in each.
  private static let sums = 8
  /// Words that last as long as the epilogue of the rows before, measured: with more of them, whose operands come from
  /// memory one by one, loads are what is waited for.
  private static let longest = 4
  /// rax, rbx and r9 stand in A, in B and in what comes behind it, rcx in C.
  static let addressRegisters: [R64] = [.rsi, .r8, .r10, .r11, .rdx]

  /// The words of K that tiles of a plan leave.
  static func words(_ plan: TiledMultiply.Plan) -> Int {
    guard plan.isa == .avx512, plan.blocks.count == 1, plan.ldb == nil, plan.terms == SumTerms(),
      plan.sumsTogether == nil, plan.blocks[0].k >= longest
    else { return 0 }
    switch plan.types.kind {
    case .int8, .bfloat16: return longest
    case .float32, .float16Weights, .int16, .widenedInt8: return 0
    }
  }
}

extension MicrokernelGenerator {
  /// The last member of the batch ends some words of K early.
  func leaveWords(to drain: TileDrain) {
    let others = a.label()
    a.cmp(.rsi, 1)
    a.j(.notEqual, others)
    a.sub(.rdx, drain.words)
    a.bind(others)
  }

  /// The last words, and what happens to the sums.
  func store(_ drain: TileDrain) throws(ApusError) {
    if let tail { a.prepareTail(tail, count: shape.lastColumns, scratch: .rdx) }
    let addresses = try loadOperandAddresses(TileDrain.addressRegisters)
    var before: Storing?
    for first in stride(from: 0, to: rows, by: drain.rows) {
      let rows = first..<min(rows, first + drain.rows)
      try sumUp(rows, drain, between: before)
      before = try storing(rows, addresses, drain.free)
      guard before != nil else { throw ApusError(.internalError, "an epilogue has too few registers") }
    }
    if let before { for piece in before.pieces { try write(piece, of: before) } }
  }

  /// The last words of some rows and their share of the lines fetched ahead, and between them the epilogue of the rows
  /// before.
  private func sumUp(_ rows: Range<Int>, _ drain: TileDrain, between storing: Storing?) throws(ApusError) {
    let lines = drain.words * shape.linesAhead
    for line in lines * rows.lowerBound / self.rows..<lines * rows.upperBound / self.rows {
      a.prefetcht1(Address(.r9, 64 * line))
    }
    let vectorBytes = isa.lanes * shape.kind.columnBytes
    var (step, written) = (0, 0)
    for word in 0..<drain.words {
      for row in rows {
        a.vbroadcastss(drain.factor, Address(.rax, shape.rowOffsets[row] + 4 * word))
        for (index, sum) in accumulators[row].enumerated() {
          multiplyAdd(sum, Address(.rbx, word * shape.panelBytes + index * vectorBytes), drain.factor)
        }
        step += 1
        guard let storing else { continue }
        let end = storing.pieces.count * step / (drain.words * rows.count)
        for piece in storing.pieces[written..<end] { try write(piece, of: storing) }
        written = end
      }
    }
  }
}
