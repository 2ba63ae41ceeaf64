// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// `C[m x n] = epilogue(A[m x k] * W[k x n])` with weights of four bits and AVX-512, everything decided in
/// advance.
///
/// Few rows of A are multiplied with weights as they are looked up, which takes little more than reading
/// them; with more rows, a stretch of a panel is unpacked into memory for the kernels of single precision.
package final class NibbleProductPlan: Sendable {
  /// What shapes a plan.
  package struct Shape: Hashable, Sendable {
    package var m: Int
    package var n: Int
    package var k: Int
    /// Rows of W that share a scale.
    package var block: Int
    /// Vectors of columns of a panel.
    package var vectors: Int
    /// Vectors of columns that are multiplied at a time, of which fewer leave registers for more rows; 0
    /// where weights are unpacked into memory.
    package var vectorsAtOnce: Int
    package var hasHalfScales: Bool
    package var hasZeros: Bool

    package init(
      m: Int, n: Int, k: Int, block: Int, vectors: Int, vectorsAtOnce: Int = 0,
      hasHalfScales: Bool = false, hasZeros: Bool = false
    ) {
      (self.m, self.n, self.k, self.block, self.vectors) = (m, n, k, block, vectors)
      self.vectorsAtOnce = min(vectors, vectorsAtOnce)
      (self.hasHalfScales, self.hasZeros) = (hasHalfScales, hasZeros)
    }

    /// The order in which the weights are stored.
    package var packing: PackedLayout {
      PackedLayout(batch: 1, rows: k, columns: n, width: vectors * 16, interleave: 8)
    }
    /// The order in which scales and zero points are stored.
    package var packingOfScales: PackedLayout {
      PackedLayout(batch: 1, rows: blocks, columns: n, width: vectors * 16)
    }
    var blocks: Int { (k + block - 1) / block }
    var panels: Int { (n + vectors * 16 - 1) / (vectors * 16) }
    /// Columns of the last panel.
    var lastColumns: Int { n - (panels - 1) * vectors * 16 }
    var unpacks: Bool { vectorsAtOnce == 0 }
    /// Rows of a tile.
    var tileRows: Int { unpacks ? [28, 14, 9, 6][vectors - 1] : panel(vectors: vectorsAtOnce).rowLimit }

    /// Numbers of vectors that are read at a time.
    var vectorsInUse: Set<Int> {
      let last = (lastColumns + 15) / 16
      guard !unpacks else { return panels > 1 ? [vectors, last] : [last] }
      let parts = (panels > 1 ? [vectors, last] : [last]).flatMap { [min($0, vectorsAtOnce), $0 % vectorsAtOnce] }
      return Set(parts.filter { $0 > 0 })
    }

    func panel(vectors used: Int) -> NibblePanel {
      NibblePanel(
        block: block, panelVectors: vectors, vectors: used, rest: k % block,
        hasHalfScales: hasHalfScales, hasZeros: hasZeros)
    }
  }

  /// Where the operands are.
  package struct Operands {
    package var a: UnsafeRawPointer
    package var words: UnsafeRawPointer
    package var scales: UnsafeRawPointer
    package var zeros: UnsafeRawPointer?
    package var c: UnsafeMutableRawPointer
    /// The epilogue's.
    package var extras: UnsafePointer<UnsafeRawPointer>?
    package var workspace: UnsafeMutableRawPointer?

    package init(
      a: UnsafeRawPointer, words: UnsafeRawPointer, scales: UnsafeRawPointer,
      zeros: UnsafeRawPointer? = nil, c: UnsafeMutableRawPointer,
      extras: UnsafePointer<UnsafeRawPointer>? = nil, workspace: UnsafeMutableRawPointer? = nil
    ) {
      (self.a, self.words, self.scales, self.zeros) = (a, words, scales, zeros)
      (self.c, self.extras, self.workspace) = (c, extras, workspace)
    }
  }

  package let shape: Shape
  /// Scratch memory a run needs: a stretch of a panel for each task.
  package let workspaceByteCount: Int
  let types: ProductTypes
  let extras: [EpilogueOperand]
  /// Rows of A that are finished before the next ones, cut into tiles.
  let tiles: [(row: Int, count: Int)]
  let tilesPerBlock: Int
  /// Blocks of weights that are unpacked at a time.
  let stretch: Int
  let tasks: Int
  /// By vectors of columns.
  let lookups: Kernels<NibbleKernel>
  /// For whole panels (0) and for the last one (1).
  let products: Kernels<Microkernel>

  /// Generated code by number of rows and another number.
  struct Kernels<Kernel: Sendable>: Sendable {
    private var known: [[Kernel?]] = []

    init(rows: Set<Int>, _ others: Set<Int>, _ make: (_ rows: Int, _ other: Int) throws(ApusError) -> Kernel)
      throws(ApusError)
    {
      for count in 0...(rows.max() ?? 0) {
        var line: [Kernel?] = []
        for other in 0...(others.max() ?? 0) {
          let isWanted = rows.contains(count) && others.contains(other)
          line.append(isWanted ? try make(count, other) : nil)
        }
        known.append(line)
      }
    }

    subscript(rows: Int, other: Int) -> Kernel? { known[rows][other] }
  }

  /// Plans a product of matrices whose rows follow each other.
  ///
  /// - Throws: `not-yet-supported` when there is no code for the sizes or the epilogue.
  package init(
    _ shape: Shape, epilogue: ScalarExpr = .input(0), extras: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes()
  ) throws(ApusError) {
    guard ISA.current == .avx512, shape.m > 0, shape.n > 0, shape.k > 0,
      (1...4).contains(shape.vectors), shape.vectorsAtOnce >= 0
    else { throw ApusError(.notYetSupported, "a product with four-bit weights of \(shape)") }
    self.shape = shape
    self.extras = extras
    let types = types.filled(extras.count)
    self.types = types
    let sizes = TiledMultiply.split(shape.m, rows: shape.tileRows)
    var row = 0
    tiles = sizes.map { size in
      defer { row += size }
      return (row, size)
    }
    // Sums wait in C between stretches, where it can hold them.
    let most = types.result == .float32 ? max(1, 256 / shape.block) : shape.blocks
    stretch = min(most, shape.blocks)
    let rowsOfA = max(1, (448 << 10) / (4 * stretch * shape.block))
    tilesPerBlock = shape.unpacks ? max(1, rowsOfA / shape.tileRows) : tiles.count
    tasks = min(shape.panels, (shape.unpacks ? 4 : 8) * ThreadPool.availableProcessors())
    workspaceByteCount =
      tasks * shape.vectors * 64 * (shape.unpacks ? stretch * shape.block : sizes.max() ?? 1)
    let counts = Set(sizes)
    lookups = try Kernels(rows: shape.unpacks ? [0] : counts, shape.vectorsInUse) {
      (rows, vectors) throws(ApusError) in
      try NibbleKernel(
        shape.panel(vectors: vectors),
        rows == 0 ? .unpack : .product(rows: rows, strideOfA: 4 * shape.k))
    }
    products = try Kernels(rows: shape.unpacks ? counts : [1], shape.panels > 1 ? [0, 1] : [1]) {
      (rows, isLast) throws(ApusError) in
      let columns = isLast == 1 ? shape.lastColumns : shape.vectors * 16
      return try Microkernel(
        MicrokernelShape(
          rowOffsets: (0..<rows).map { $0 * 4 * shape.k }, vectors: (columns + 15) / 16,
          panelBytes: shape.vectors * 64, masksB: false, lastColumns: (columns - 1) % 16 + 1,
          rowsOfC: (0..<rows).map { $0 * shape.n }, rowsOfOperands: (0..<rows).map { $0 * shape.n },
          epilogue: epilogue, operands: extras, operandTypes: types.operands,
          resultType: types.result, kind: .float32, isa: .avx512))
    }
  }
}
