// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Copies rows and fills them up with zeros.
private struct RowFilling {
  let rows: Int
  let copy: ElementCopy
  /// Bytes from one row to the next in the source, of it in use, and in the copy.
  let from: Int
  let used: Int
  let to: Int

  func run(_ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, pool: ThreadPool) {
    let perTask = max(1, 65536 / to)
    pool.parallelFor((rows + perTask - 1) / perTask, (self, source, target, perTask)) {
      context, task in
      let (filling, source, target, perTask) = context
      for row in task * perTask..<min(filling.rows, (task + 1) * perTask) {
        let place = target + row * filling.to
        let used = filling.copy.copy(source + row * filling.from, to: place, byteCount: filling.used)
        (place + used).initializeMemory(as: UInt8.self, repeating: 0, count: filling.to - used)
      }
    }
  }
}

/// `C[m x n] = epilogue(A[m x k] * B[k x n])`, row-major, everything decided in advance.
package final class GemmPlan: Sendable {
  /// The register tile.
  package let tile: GemmTile
  /// The panel width that B must be packed with (`PackedMatrix`).
  package let nr: Int
  /// Scratch memory a run needs: rows of A filled up to whole words.
  package let workspaceByteCount: Int
  private let multiply: TiledMultiply
  private let rows: RowFilling?

  /// Plans a product; strides in elements. With `ldb`, B is used as it lies instead of packed.
  /// Several products of the same sizes are planned together by listing where each one starts;
  /// operands with an element for every element of the result lie as the result does, but for the row stride
  /// where that is given (`ldo`).
  ///
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    m: Int, n: Int, k: Int, lda: Int, ldc: Int, ldb: Int? = nil, ldo: Int? = nil,
    tile: GemmTile? = nil, isa: ISA = .current, epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes(), batch: [BatchMember] = [BatchMember()],
    terms: SumTerms = SumTerms()
  ) throws(ApusError) {
    let kind = types.kind
    let elementBytes = kind.elementBytes
    let interleave = types.kind.interleave
    guard m > 0, n > 0, k > 0, isa != .portable, ldb == nil || interleave == 1,
      (k % interleave == 0 && !kind.widens) || batch.count == 1
    else {
      throw ApusError(.notYetSupported, "a product of \(m) x \(k) and \(k) x \(n)")
    }
    let words = (k + interleave - 1) / interleave
    // Kernels read whole words: rows that end inside one are copied and filled up with zeros. Copies of rows that are
    // a power of two apart would share few sets of the first-level cache.
    rows =
      k % interleave == 0 && !kind.widens
      ? nil
      : RowFilling(
        rows: m, copy: ElementCopy(kind), from: lda * kind.storedBytes, used: k * kind.storedBytes,
        to: words * 4 + (words % 256 == 0 ? 64 : 0))
    let rowBytes = rows?.to ?? lda * elementBytes
    workspaceByteCount = rows.map { $0.rows * $0.to } ?? 0
    var tile = tile ?? GemmTile.choose(run: m, n: n, stride: rowBytes / 4, isa: isa, kind: kind)
    if ldb != nil && isa != .avx512 {
      // The lanes of B's last columns take a register.
      tile.rows = max(1, min(tile.rows, (isa.registerCount - 2 - tile.vectors) / tile.vectors))
    }
    self.tile = tile
    nr = tile.columns(isa)
    var patterns: [[Int]] = []
    var tiles: [TiledMultiply.Tile] = []
    var row = 0
    for size in TiledMultiply.split(m, rows: tile.rows) {
      let index = patterns.firstIndex { $0.count == size } ?? patterns.count
      if index == patterns.count { patterns.append((0..<size).map { $0 * rowBytes }) }
      tiles.append(TiledMultiply.Tile(offsetInA: row * rowBytes, row: row, pattern: index))
      row += size
    }
    // Long sums are cut so that the part of B in use stays in a cache; with one tile of
    // rows nothing is used twice. Sums wait in C between the pieces, where it can hold them.
    var blocks: [TiledMultiply.KBlock] = []
    let isWhole = tiles.count == 1 || types.result != types.kind.sumType
    let usual = TiledMultiply.wordsPerBlock(tile, isa)
    let pieces = isWhole ? 1 : max(1, (words + usual / 2 - 1) / usual)
    var start = 0
    for (index, size) in TiledMultiply.split(words, rows: (words + pieces - 1) / pieces).enumerated() {
      blocks.append(TiledMultiply.KBlock(first: index, count: 1, k: size, start: start))
      start += size
    }
    multiply = try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, offsets: blocks.map { $0.start * 4 },
        blocks: blocks, k: words, n: n, vectors: tile.vectors, ldb: ldb, ldc: ldc,
        ldo: ldo ?? ldc,
        epilogue: epilogue, operands: operands, types: types.filled(operands.count),
        groups: batch.map {
          TiledMultiply.Group(a: $0.a * elementBytes, b: $0.b * elementBytes, c: $0.c)
        }, terms: terms, sumsTogether: tile.sumsTogether))
  }

  /// Where one of several products starts in A, B and C, in elements.
  package struct BatchMember: Hashable, Sendable {
    package var a: Int
    package var b: Int
    package var c: Int

    /// Names the three places.
    package init(a: Int = 0, b: Int = 0, c: Int = 0) {
      self.a = a
      self.b = b
      self.c = c
    }
  }

  /// Multiplies. `operands` holds the addresses of the epilogue's extra operands.
  package func run(
    a: UnsafeRawPointer, b: UnsafeRawPointer, c: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, workspace: UnsafeMutableRawPointer? = nil,
    terms: TiledMultiply.Terms = TiledMultiply.Terms(), pool: ThreadPool
  ) {
    var a = a
    if let rows, let workspace {
      rows.run(a, workspace, pool: pool)
      a = UnsafeRawPointer(workspace)
    }
    multiply.run(a: a, b: b, c: c, operands: operands, terms: terms, pool: pool)
  }
}
