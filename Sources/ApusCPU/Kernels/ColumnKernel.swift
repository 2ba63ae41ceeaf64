// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// A generated loop down the columns of a matrix of single-precision numbers, or of bytes and BF16
/// numbers as such, which combines the elements of each column; a few vectors of columns at a time, their results in registers.
package final class ColumnKernel: Sendable {
  /// How a column becomes a number: `after` of the combined `before` of the elements, each of input 0.
  package struct Function: Hashable, Sendable {
    package var reduction: RowKernel.Reduction
    package var before: ScalarExpr
    package var after: ScalarExpr

    /// Names the parts.
    package init(
      _ reduction: RowKernel.Reduction, before: ScalarExpr = .input(0),
      after: ScalarExpr = .input(0)
    ) {
      self.reduction = reduction
      self.before = before
      self.after = after
    }
  }

  /// Columns of a block.
  let blockColumns: Int
  private let columns: Int
  private let elementBytes: Int
  private let blocks: [ExecutableMemory]

  /// `(first element of the columns, result, rows)`
  private typealias Code = @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void

  /// Generates the loops for rows of `columns` elements of `type`; results are single precision.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code or rows are too long.
  package init(
    columns: Int, _ function: Function, type: DataType = .float32, isa: ISA = .current
  ) throws(ApusError) {
    guard isa != .portable, ElementAccess.supports(type, isa), columns > 0, columns < 1 << 28 else {
      throw ApusError(.notYetSupported, "no generated code for columns of this machine or size")
    }
    self.columns = columns
    elementBytes = ElementAccess.byteCount(type)
    blockColumns = Self.vectors(isa) * isa.lanes
    let last = (columns - 1) % blockColumns + 1
    // Whole blocks, then the last one.
    blocks = try (columns > last ? [blockColumns, last] : [last]).map { width throws(ApusError) in
      try ExecutableMemory(
        Self.generate(width, of: columns, function, type, isa),
        name: "columns \(width) of \(columns) \(isa.rawValue)")
    }
  }

  /// Vectors of a block: whole pages of memory are read in longer runs the more there are.
  private static func vectors(_ isa: ISA) -> Int { isa == .avx512 ? 16 : 6 }

  /// Blocks that the columns have.
  var blockCount: Int { (columns + blockColumns - 1) / blockColumns }

  /// Combines `rows` rows of a block of columns; `x` and `result` are where the matrix and the row of
  /// results start.
  func run(_ x: UnsafeRawPointer, result: UnsafeMutableRawPointer, rows: Int, block: Int) {
    let code = blocks[block == blockCount - 1 ? blocks.count - 1 : 0].function(as: Code.self)
    let first = block * blockColumns
    code(x + first * elementBytes, result + first * 4, rows)
  }

  /// A block of `columns` columns, of rows of `all` elements: rdi elements, rsi results, rdx rows.
  private static func generate(
    _ columns: Int, of all: Int, _ function: Function, _ type: DataType, _ isa: ISA
  ) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    var pool = (0..<isa.registerCount).map { Vec($0, isa.width) }
    var tail: TailMask?
    if columns % isa.lanes != 0 {
      let mask = isa == .avx512 ? TailMask.mask(Mask(7)) : .lanes(pool.removeLast(), count: columns % isa.lanes)
      a.prepareTail(mask, count: columns % isa.lanes, scratch: .rax)
      tail = mask
    }
    let scratch = pool.removeLast()
    let vectors = (columns + isa.lanes - 1) / isa.lanes
    let totals = Array(pool.prefix(vectors))
    let free = Array(pool.dropFirst(vectors))
    let neutral = a.constant(words: [function.reduction.neutral.bitPattern])
    for total in totals { a.vbroadcastss(total, neutral) }
    func tailOf(_ index: Int) -> TailMask? { index == vectors - 1 ? tail : nil }
    let bytes = ElementAccess.byteCount(type)
    let number = type.isInteger ? ScalarExpr.cast(.input(0), .float32) : .input(0)
    let before = function.before.substituting { _ in number }
    let loop = a.here()
    for (index, total) in totals.enumerated() {
      let place = Address(.rdi, index * isa.lanes * bytes)
      let emitter = ExpressionEmitter(
        a, isa: isa, free: free, tail: tailOf(index), types: [type]
      ) { _ in tailOf(index) == nil ? .memory(place) : .tail(place) }
      a.combine(
        function.reduction, total, try emitter.emit(before), scratch: scratch, isa: isa)
    }
    a.add(.rdi, all * bytes)
    a.dec(.rdx)
    a.j(.notEqual, loop)
    for (index, total) in totals.enumerated() {
      let emitter = ExpressionEmitter(a, isa: isa, free: free) { _ in .register(total) }
      let value = try emitter.emit(function.after)
      a.storeTail(Address(.rsi, index * isa.width.bytes), value, tailOf(index))
    }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }
}
