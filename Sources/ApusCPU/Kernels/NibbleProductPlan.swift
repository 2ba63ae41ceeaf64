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
    /// Whether weights are unpacked into memory.
    package var unpacks: Bool
    package var hasHalfScales: Bool
    package var hasZeros: Bool

    package init(
      m: Int, n: Int, k: Int, block: Int, vectors: Int, unpacks: Bool, hasHalfScales: Bool = false,
      hasZeros: Bool = false
    ) {
      (self.m, self.n, self.k, self.block, self.vectors) = (m, n, k, block, vectors)
      (self.unpacks, self.hasHalfScales, self.hasZeros) = (unpacks, hasHalfScales, hasZeros)
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
    /// Vectors of columns in use of the last panel.
    var lastVectors: Int { (n - (panels - 1) * vectors * 16 + 15) / 16 }
    /// Rows of a tile.
    var tileRows: Int { unpacks ? [28, 14, 9, 6][vectors - 1] : NibbleKernel.rowLimit }

    func panel(isLast: Bool) -> NibblePanel {
      NibblePanel(
        block: block, panelVectors: vectors, vectors: isLast ? lastVectors : vectors, rest: k % block,
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
  let lookups: Kernels<NibbleKernel>
  let products: Kernels<Microkernel>

  /// Generated code by number of rows, for whole panels and for the last one.
  struct Kernels<Kernel: Sendable>: Sendable {
    private var whole: [Int: Kernel] = [:]
    private var last: [Int: Kernel] = [:]

    init(_ shape: Shape, rows: Set<Int>, _ make: (Int, _ isLast: Bool) throws(ApusError) -> Kernel)
      throws(ApusError)
    {
      for count in rows.sorted() {
        if shape.panels > 1 { whole[count] = try make(count, false) }
        last[count] = try make(count, true)
      }
    }

    subscript(rows: Int, isLast: Bool) -> Kernel? { isLast ? last[rows] : whole[rows] }
  }

  /// Plans a product of matrices whose rows follow each other.
  ///
  /// - Throws: `not-yet-supported` when there is no code for the sizes or the epilogue.
  package init(
    _ shape: Shape, epilogue: ScalarExpr = .input(0), extras: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes()
  ) throws(ApusError) {
    guard ISA.current == .avx512, shape.m > 0, shape.n > 0, shape.k > 0, (1...4).contains(shape.vectors)
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
    let most = types.result == .float32 ? max(1, 512 / shape.block) : shape.blocks
    stretch = min(most, shape.blocks)
    let rowsOfA = max(1, (448 << 10) / (4 * stretch * shape.block))
    tilesPerBlock = shape.unpacks ? max(1, rowsOfA / shape.tileRows) : tiles.count
    tasks = min(shape.panels, (shape.unpacks ? 4 : 8) * ThreadPool.availableProcessors())
    workspaceByteCount = shape.unpacks ? tasks * stretch * shape.block * shape.vectors * 64 : 0
    let counts = Set(sizes)
    lookups = try Kernels(shape, rows: shape.unpacks ? [0] : counts) { (rows, isLast) throws(ApusError) in
      try NibbleKernel(
        shape.panel(isLast: isLast),
        rows == 0 ? .unpack : .product(rows: rows, strideOfA: 4 * shape.k))
    }
    products = try Kernels(shape, rows: shape.unpacks ? counts : [1]) { (rows, isLast) throws(ApusError) in
      let columns = isLast ? shape.n - (shape.panels - 1) * shape.vectors * 16 : shape.vectors * 16
      return try Microkernel(
        MicrokernelShape(
          rowOffsets: (0..<rows).map { $0 * 4 * shape.k }, vectors: (columns + 15) / 16,
          panelBytes: shape.vectors * 64, masksB: false, lastColumns: (columns - 1) % 16 + 1,
          rowStrideOfC: shape.n, epilogue: epilogue, operands: extras, operandTypes: types.operands,
          resultType: types.result, kind: .float32, isa: .avx512))
    }
  }
}
