// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

/// The largest register tile of a matrix product: `rows` x `vectors` vectors of columns.
package struct GemmTile: Hashable, Sendable, CustomStringConvertible {
  /// Rows of C.
  package var rows: Int
  /// Vectors of columns of C.
  package var vectors: Int
  /// Accumulators whose sums grow while the epilogue empties as many others (`TileOverlap`); nil where all grow
  /// together and the epilogue comes behind them.
  package var sumsTogether: Int?

  /// A tile.
  package init(rows: Int, vectors: Int, sumsTogether: Int? = nil) {
    self.rows = rows
    self.vectors = vectors
    self.sumsTogether = sumsTogether
  }

  package var description: String {
    "\(rows)x\(vectors)" + (sumsTogether.map { ", \($0) at a time" } ?? "")
  }

  /// Columns: the width of the panels B is packed in.
  package func columns(_ isa: ISA) -> Int { vectors * isa.lanes }

  /// The tiles worth timing, each with as many rows as the registers hold.
  package static func candidates(_ isa: ISA, _ kind: ProductKind = .float32) -> [GemmTile] {
    let shapes =
      isa == .avx512
      ? [(6, 4), (9, 3), (14, 2), (28, 1), (4, 6), (2, 8)] : [(6, 2), (4, 3), (12, 1), (2, 4)]
    return shapes.map { rows, vectors in
      // One register is for B's element besides A's, one for products that are added apart.
      let most = (isa.registerCount - vectors - 2) / vectors
      return GemmTile(rows: kind.addsApart(isa) ? min(rows, most) : rows, vectors: vectors)
    }
  }

  /// Those whose epilogue runs beside the sums, for sums over so many words of K and so many elements of C.
  ///
  /// They pay where sums are short: with half of the registers, a long one waits for its multiply-adds. And every
  /// row of such a tile has code of its own, which inside of a network is not in the caches when it is wanted: only
  /// products that run through it often make up for that.
  package static func overlapping(
    _ isa: ISA, _ types: ProductTypes, words: Int, results: Int, columns: Int = .max,
    epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = []
  ) -> [GemmTile] {
    overlapping(isa, types.kind, words: words, results: results).filter {
      $0.leavesRegisters(for: epilogue, operands: operands, types: types, columns: columns)
    }
  }

  private static func overlapping(_ isa: ISA, _ kind: ProductKind, words: Int, results: Int)
    -> [GemmTile]
  {
    guard isa == .avx512, words <= TileOverlap.mostWords, results >= leastResults else { return [] }
    switch kind {
    case .int8:
      return [(16, 4, 8), (18, 3, 9), (20, 2, 10)].map {
        GemmTile(rows: $0, vectors: $1, sumsTogether: $2)
      }
    case .bfloat16: return [GemmTile(rows: 24, vectors: 3, sumsTogether: 12)]
    case .float32, .float16Weights, .int16, .widenedInt8: return []
    }
  }

  private static let leastResults = 100_000

  /// The share of the peak that this tile reaches for `n` columns and rows that come in runs of `run`
  /// (all rows of a matrix, or the pixels of one output row), `stride` elements apart in A. Fitted to
  /// measurements.
  package func efficiency(run: Int, n: Int, stride: Int, isa: ISA) -> Double {
    let used = (n + isa.lanes - 1) / isa.lanes
    let tiles = (run + rows - 1) / rows
    let height = sumsTogether.map { Double($0 / vectors) } ?? Double(run) / Double(tiles)
    // Columns in use, averaged over the panels.
    let columns = Double(used) / Double((used + vectors - 1) / vectors)
    // Accumulators enough to cover the latency of a multiply-add; every row and every vector of columns
    // is a load, of which there are as many at a time as multiply-adds.
    let inFlight = isa == .avx512 ? 8.0 : 10.0
    let loads = isa == .avx512 ? height * columns / (height + columns) : 1 / (0.5 / height + 0.5 / columns + 0.5)
    var result = min(1, height * columns / inFlight) * min(1, loads)
    result *= 1 + 0.002 * (height * columns - 24)
    // Many rows touch many pages and cache sets at once, and narrow panels are read more often.
    result *= 1 - 0.006 * max(0, height - 6)
    return height > Double(Self.rowLimit(stride: stride)) ? result * 0.5 : result
  }

  /// Rows whose distance divides 4 KB fall into few sets of the first-level cache; with more of them
  /// than it has ways, they evict each other.
  private static func rowLimit(stride: Int) -> Int {
    let step = stride % 1024 == 0 ? 1024 : max(16, stride & -stride)
    return 7 * (1024 / step)
  }

  /// The most efficient tile of the candidates, its rows limited by the cache; with a `width`, of
  /// those that read panels of so many columns.
  package static func choose(
    run: Int, n: Int, stride: Int, isa: ISA, width: Int? = nil, kind: ProductKind = .float32
  ) -> GemmTile {
    let used = (n + isa.lanes - 1) / isa.lanes
    var best = GemmTile(rows: 1, vectors: 1)
    var bestScore = -1.0
    for candidate in candidates(isa, kind) {
      let tile = GemmTile(
        rows: min(candidate.rows, rowLimit(stride: stride)), vectors: min(used, candidate.vectors))
      if let width, tile.columns(isa) != width { continue }
      let score = tile.efficiency(run: run, n: n, stride: stride, isa: isa)
      if score > bestScore { (bestScore, best) = (score, tile) }
    }
    return best
  }
}

/// Packing of a row-major K x N matrix into panels `[ceil(N / nr)][K][nr]`, zero padded.
package enum PackedMatrix {
  /// The size of the packed form.
  package static func byteCount(k: Int, n: Int, nr: Int) -> Int { (n + nr - 1) / nr * nr * k * 4 }

  /// Packs `b`, whose element (k, n) is at `k * rowStride + n * columnStride`; strides in elements, so
  /// a transposed matrix is packed by swapping them.
  package static func pack(
    _ b: UnsafePointer<Float>, rowStride: Int, columnStride: Int = 1, k: Int, n: Int, nr: Int,
    into packed: UnsafeMutablePointer<Float>
  ) {
    for panel in 0..<(n + nr - 1) / nr {
      let first = panel * nr
      let columns = min(nr, n - first)
      for row in 0..<k {
        let source = b + row * rowStride + first * columnStride
        let target = packed + (panel * k + row) * nr
        if columnStride == 1 {
          target.update(from: source, count: columns)
        } else {
          for column in 0..<columns { target[column] = source[column * columnStride] }
        }
        for column in columns..<nr { target[column] = 0 }
      }
    }
  }
}
