// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A batch of products of computed matrices of narrow elements: `(A - p) * (B - q)` for bytes, `A * B` for
/// BF16. A run brings both sides into the order that the instructions read, then multiplies:
///
///     sum (a - p) (b - q) = sum a b' - q' sum a - p sum (b' - q')     with b' = b - 128, q' = q - 128
///
/// The last two are terms of a row and of a column.
package final class ComputedProductPlan: Sendable {
  /// What is multiplied.
  package struct Shape: Sendable {
    package var m: Int
    package var n: Int
    package var k: Int
    /// Whether B is stored as `[n, k]`.
    package var transposesRight: Bool
    package var leftZero = 0
    package var rightZero = 0
    /// Whether B's bytes are unsigned.
    package var rightIsUnsigned = false
    /// Where each product starts, in elements.
    package var batch: [GemmPlan.BatchMember]

    package init(
      m: Int, n: Int, k: Int, transposesRight: Bool = false, batch: [GemmPlan.BatchMember]
    ) {
      self.m = m
      self.n = n
      self.k = k
      self.transposesRight = transposesRight
      self.batch = batch
    }
  }

  /// Scratch memory that a run needs.
  package let workspaceByteCount: Int
  private let shape: Shape
  private let elementBytes: Int
  private let words: Int
  private let nr: Int
  private let product: GemmPlan
  private let left: LeftSideKernel?
  private let leftShape: LeftSideKernel.Shape
  private let right: RightSideKernel?
  private let exchange: TransposedPack?
  /// Bytes of one product's part of the workspace, and where in the workspace the parts start.
  private let panelBytes: Int
  private let sides: (rows: Int, rowTerms: Int, columnTerms: Int)

  /// Plans it; C's products follow each other.
  ///
  /// - Throws: `not-yet-supported` when there is no such kernel.
  package init(
    _ shape: Shape, tile: GemmTile, epilogue: ScalarExpr = .input(0),
    operands: [EpilogueOperand] = [], types: ProductTypes
  ) throws(ApusError) {
    let interleave = types.kind.interleave
    guard types.kind == .int8 || types.kind == .bfloat16, shape.m > 0, shape.n > 0, shape.k > 0,
      !shape.transposesRight || shape.k % interleave == 0
    else {
      throw ApusError(.notYetSupported, "no product of computed matrices for these types")
    }
    self.shape = shape
    elementBytes = types.kind.elementBytes
    words = (shape.k + interleave - 1) / interleave
    let rightZero = shape.rightZero - (shape.rightIsUnsigned ? 128 : 0)
    leftShape = LeftSideKernel.Shape(
      usedBytes: shape.k * elementBytes, rowBytes: shape.k * elementBytes,
      copies: shape.k % interleave != 0, factor: -rightZero)
    left = leftShape.isIdle ? nil : try LeftSideKernel(leftShape)
    nr = tile.columns(.avx512)
    let panels = (shape.n + nr - 1) / nr
    let rightShape = RightSideKernel.Shape(
      k: shape.k, elementBytes: elementBytes,
      rowBytes: shape.transposesRight ? nil : shape.n * elementBytes, panelBytes: nr * 4,
      isUnsigned: shape.rightIsUnsigned, leftZero: shape.leftZero, rightZero: shape.rightZero)
    right = rightShape.isIdle ? nil : try RightSideKernel(rightShape)
    exchange =
      shape.transposesRight
      ? try TransposedPack(k: words, n: shape.n, nr: nr, stride: words) : nil
    let count = shape.batch.count
    panelBytes = panels * nr * words * 4
    let rowBytes = leftShape.copies ? shape.m * leftShape.copiedBytes : 0
    func rounded(_ bytes: Int) -> Int { (bytes + 63) / 64 * 64 }
    let rows = rounded(count * panelBytes)
    let rowTerms = rows + rounded(count * rowBytes)
    let columnTerms = rowTerms + rounded(leftShape.factor != 0 ? count * shape.m * 4 : 0)
    sides = (rows, rowTerms, columnTerms)
    workspaceByteCount = columnTerms + (shape.leftZero != 0 ? count * panels * nr * 4 : 0)
    let (copies, bytes, panelSize) = (leftShape.copies, elementBytes, panelBytes)
    let depth = words * interleave
    product = try GemmPlan(
      m: shape.m, n: shape.n, k: depth, lda: depth, ldc: shape.n, tile: tile, isa: .avx512,
      epilogue: epilogue, operands: operands, types: types,
      batch: shape.batch.enumerated().map { index, member in
        GemmPlan.BatchMember(
          a: copies ? index * shape.m * depth : member.a, b: index * panelSize / bytes,
          c: member.c)
      },
      terms: SumTerms(perRow: leftShape.factor != 0, perColumn: shape.leftZero != 0))
  }

  /// Multiplies. `operands` holds the addresses of the epilogue's extra operands.
  package func run(
    a: UnsafeRawPointer, b: UnsafeRawPointer, c: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>?, workspace: UnsafeMutableRawPointer, pool: ThreadPool
  ) {
    pool.parallelFor(shape.batch.count, (self, a, b, workspace)) { context, index in
      let (plan, a, b, workspace) = context
      plan.prepareRight(index, b, workspace)
      plan.prepareLeft(index, a, workspace)
    }
    let base = Int(bitPattern: workspace)
    product.run(
      a: leftShape.copies ? UnsafeRawPointer(workspace + sides.rows) : a, b: workspace, c: c,
      operands: operands,
      terms: TiledMultiply.Terms(rows: base + sides.rowTerms, columns: base + sides.columnTerms),
      pool: pool)
  }

  private func prepareLeft(_ index: Int, _ a: UnsafeRawPointer, _ workspace: UnsafeMutableRawPointer) {
    guard let left else { return }
    let base = Int(bitPattern: workspace)
    left.run(
      rows: Int(bitPattern: a) + shape.batch[index].a * elementBytes,
      copies: base + sides.rows + index * shape.m * leftShape.copiedBytes,
      terms: base + sides.rowTerms + index * shape.m * 4, count: shape.m)
  }

  private func prepareRight(_ index: Int, _ b: UnsafeRawPointer, _ workspace: UnsafeMutableRawPointer) {
    let source = b + shape.batch[index].b * elementBytes
    let panels = workspace + index * panelBytes
    exchange?.run(source, into: panels)
    guard let right else { return }
    let terms =
      Int(bitPattern: workspace) + sides.columnTerms + index * (panelBytes / words)
    for column in stride(from: 0, to: shape.n, by: 16) {
      let panel = column / nr * nr * words * 4 + column % nr * 4
      right.run(
        source: Int(bitPattern: source) + column * elementBytes,
        panel: Int(bitPattern: panels) + panel, terms: terms + column * 4,
        columns: min(16, shape.n - column))
    }
  }
}
