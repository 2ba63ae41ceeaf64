// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// `C[m x n] = epilogue(A[m x k] * B[k x n])` in single precision, row-major, everything decided in
/// advance.
package final class GemmPlan: Sendable {
  /// The register tile.
  package let tile: GemmTile
  /// The panel width that B must be packed with (`PackedMatrix`).
  package let nr: Int
  /// Scratch memory a run needs.
  package let workspaceByteCount = 0
  private let multiply: TiledMultiply

  /// Plans a product; strides in elements. With `ldb`, B is used as it lies instead of packed.
  /// Several products of the same sizes are planned together by listing where each one starts;
  /// operands with an element for every element of the result lie as the result does.
  ///
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    m: Int, n: Int, k: Int, lda: Int, ldc: Int, ldb: Int? = nil, tile: GemmTile? = nil,
    isa: ISA = .current, epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    batch: [BatchMember] = [BatchMember()]
  ) throws(ApusError) {
    guard m > 0, n > 0, k > 0, isa != .portable else {
      throw ApusError(.notYetSupported, "a product of \(m) x \(k) and \(k) x \(n)")
    }
    var tile = tile ?? GemmTile.choose(run: m, n: n, stride: lda, isa: isa)
    if ldb != nil && isa == .avx2 {
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
      if index == patterns.count { patterns.append((0..<size).map { $0 * lda * 4 }) }
      tiles.append(TiledMultiply.Tile(offsetInA: row * lda * 4, row: row, pattern: index))
      row += size
    }
    // Long sums are cut so that the part of B in use stays in the second-level cache; with one tile of
    // rows nothing is used twice.
    var blocks: [TiledMultiply.KBlock] = []
    let pieces = tiles.count == 1 ? 1 : max(1, (k + 255) / 512)
    var start = 0
    for (index, size) in TiledMultiply.split(k, rows: (k + pieces - 1) / pieces).enumerated() {
      blocks.append(TiledMultiply.KBlock(first: index, count: 1, k: size, start: start))
      start += size
    }
    multiply = try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, offsets: blocks.map { $0.start * 4 },
        blocks: blocks, k: k, n: n, vectors: tile.vectors, ldb: ldb, ldc: ldc, epilogue: epilogue,
        operands: operands,
        groups: batch.map { TiledMultiply.Group(a: $0.a * 4, b: $0.b * 4, c: $0.c * 4) }))
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
    pool: ThreadPool
  ) {
    multiply.run(a: a, b: b, c: c, operands: operands, pool: pool)
  }
}
