// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// The product of images whose channels are scaled with a matrix of weights, in single precision:
/// `C = epilogue((A * diag(g)) * B)`, computed as `epilogue(A * (diag(g) * B))`.
///
/// Weights are far fewer than pixels where images are large, and A is read where it lies. Each image has its own
/// factors, so each gets scaled weights of its own; or all share one.
package final class ScaledProductPlan: Sendable {
  /// Scratch memory a run needs: the scaled weights.
  package let workspaceByteCount: Int
  private let gemm: GemmPlan
  private let code: ExecutableMemory
  private let depth: Int
  private let panels: Int
  private let panelFloats: Int
  /// Scaled weights that a run makes.
  private let copies: Int

  /// `(weights, factors, scaled weights, rows)`
  private typealias Code = @convention(c) (
    UnsafeRawPointer, UnsafeRawPointer, UnsafeMutableRawPointer, Int
  ) -> Void

  /// Plans a product of `batch` images of `pixels` rows each.
  ///
  /// - Parameters:
  ///   - ofEachImage: Whether each image has factors of its own.
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    batch: Int, pixels: Int, inChannels: Int, outChannels: Int, ofEachImage: Bool, tile: GemmTile,
    isa: ISA = .current, epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes()
  ) throws(ApusError) {
    guard isa != .portable, types.kind == .float32, batch > 0 else {
      throw ApusError(.notYetSupported, "scaled products are of single precision")
    }
    let columns = tile.columns(isa)
    depth = inChannels
    panels = (outChannels + columns - 1) / columns
    panelFloats = inChannels * columns
    copies = ofEachImage ? batch : 1
    let weightFloats = panels * panelFloats
    workspaceByteCount = copies * weightFloats * 4
    let rows = ofEachImage ? pixels : batch * pixels
    gemm = try GemmPlan(
      m: rows, n: outChannels, k: inChannels, lda: inChannels, ldc: outChannels, tile: tile, isa: isa,
      epilogue: epilogue, operands: operands, types: types,
      batch: (0..<copies).map { image in
        GemmPlan.BatchMember(
          a: image * rows * inChannels, b: image * weightFloats, c: image * rows * outChannels)
      })
    code = try ExecutableMemory(
      Self.generate(vectors: tile.vectors, isa), name: "scaled weights \(isa.rawValue)")
  }

  /// rdi weights, rsi factors, rdx scaled weights, rcx rows: one factor for each row of a panel.
  private static func generate(vectors: Int, _ isa: ISA) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    let bytes = isa.width.bytes
    let factor = Vec(0, isa.width)
    let loop = a.here()
    a.vbroadcastss(factor, Address(.rsi))
    for vector in 0..<vectors {
      let product = Vec(1 + vector, isa.width)
      a.vmulps(product, factor, Address(.rdi, vector * bytes))
      a.vmovups(Address(.rdx, vector * bytes), product)
    }
    a.add(.rdi, vectors * bytes)
    a.add(.rsi, 4)
    a.add(.rdx, vectors * bytes)
    a.dec(.rcx)
    a.j(.notEqual, loop)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// Multiplies. `operands` holds the addresses of the epilogue's extra operands; `workspace` has
  /// `workspaceByteCount` bytes.
  package func run(
    input: UnsafeRawPointer, factors: UnsafeRawPointer, packedWeights: UnsafeRawPointer,
    output: UnsafeMutableRawPointer, operands: UnsafePointer<UnsafeRawPointer>?,
    workspace: UnsafeMutableRawPointer, pool: ThreadPool
  ) {
    pool.parallelFor(copies * panels, (self, factors, packedWeights, workspace)) { context, task in
      let (plan, factors, weights, workspace) = context
      let (image, panel) = task.quotientAndRemainder(dividingBy: plan.panels)
      plan.code.function(as: Code.self)(
        weights + panel * plan.panelFloats * 4, factors + image * plan.depth * 4,
        workspace + task * plan.panelFloats * 4, plan.depth)
    }
    gemm.run(a: input, b: UnsafeRawPointer(workspace), c: output, operands: operands, pool: pool)
  }
}
