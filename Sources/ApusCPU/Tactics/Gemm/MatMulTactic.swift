// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A matrix product with a constant right side, stored in panels: `[..., M, K] x [K, N]`.
struct MatMulTactic: Tactic {
  let name = "cpu.gemm.f32.packed"
  let source = "jit"
  let pitches: PitchSupport = .results
  let isa: ISA
  let pool: ThreadPool

  private struct Sizes {
    let m: Int
    let n: Int
    let k: Int
  }

  private func sizes(_ problem: AnchoredProblem) -> Sizes? {
    guard problem.inputs.count == 2, let a = problem.inputs[0], let b = problem.inputs[1],
      b.shape.count == 2, a.shape.count >= 1, a.shape.last == b.shape[0]
    else { return nil }
    return Sizes(m: a.shape.dropLast().reduce(1, *), n: b.shape[1], k: b.shape[0])
  }

  func support(_ problem: Problem) -> Support {
    let anchored = AnchoredProblem(problem)
    guard let product = anchored.anchor as? MatMul else { return .no(because: "not a matrix product") }
    guard product.isPlain else { return .no(because: "zero points, or a transposed right side") }
    if let reason = anchored.refusal { return .no(because: reason) }
    guard anchored.types != nil else { return .no(because: "no kernel for these element types") }
    guard anchored.inputs.count == 2, anchored.inputs[1]?.constant != nil else {
      return .no(because: "the right side is not constant")
    }
    guard anchored.inputs[1]?.dataType != .uint8 else {
      return .no(because: "a right side of unsigned bytes")
    }
    guard let sizes = sizes(anchored), sizes.m > 0, sizes.n > 0, sizes.k > 0 else {
      return .no(because: "the right side is not a plain non-empty matrix")
    }
    return .yes
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    let anchored = AnchoredProblem(problem)
    guard let sizes = sizes(anchored), let types = anchored.types else { return [] }
    let words = (sizes.k + types.kind.interleave - 1) / types.kind.interleave
    let overlapping = GemmTile.overlapping(
      isa, types, words: words, results: sizes.m * sizes.n, columns: sizes.n,
      epilogue: anchored.epilogue, operands: anchored.extras)
    return (GemmTile.candidates(isa, types.kind) + overlapping).map(\.configuration)
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    let anchored = AnchoredProblem(problem)
    guard let sizes = sizes(anchored), let types = anchored.types else { return [:] }
    return [
      1: PackedLayout(
        batch: 1, rows: sizes.k, columns: sizes.n, width: GemmTile(configuration).columns(isa),
        interleave: types.kind.interleave)
    ]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    let anchored = AnchoredProblem(problem)
    guard let sizes = sizes(anchored), let types = anchored.types else { return .infinity }
    return GemmEstimate.seconds(
      rows: sizes.m, columns: sizes.n, depth: sizes.k / types.kind.interleave + 1,
      stride: sizes.k / types.kind.interleave, tile: GemmTile(configuration), isa: isa)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    let anchored = AnchoredProblem(problem)
    guard let sizes = sizes(anchored), let types = anchored.types else {
      throw ApusError(.internalError, "not a product")
    }
    let plan = try GemmPlan(
      m: sizes.m, n: sizes.n, k: sizes.k, lda: sizes.k,
      ldc: problem.outputs[0].rowStride, ldo: sizes.n, tile: GemmTile(configuration), isa: isa, epilogue: anchored.epilogue,
      operands: anchored.extras, types: types)
    return MatMulKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct MatMulKernel: Kernel {
  let plan: GemmPlan
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      a: arguments[0].pointer, b: arguments[1].pointer,
      c: arguments[argumentCount].mutablePointer, operands: arguments.pointers(from: 2),
      workspace: arguments[argumentCount + 1].mutablePointer, pool: pool)
  }
}

extension GemmTile {
  /// The tile that a configuration names.
  init(_ configuration: TacticConfiguration) {
    self.init(
      rows: configuration["mr"] ?? 8, vectors: configuration["nv"] ?? 2,
      sumsTogether: configuration["sums"])
  }

  /// The configuration that names the tile.
  var configuration: TacticConfiguration {
    guard let sumsTogether else { return ["mr": rows, "nv": vectors] }
    return ["mr": rows, "nv": vectors, "sums": sumsTogether]
  }
}

/// The cost model of the broadcast-FMA kernels: multiplications at the rate the tile reaches. It only
/// orders candidates; measurement decides.
enum GemmEstimate {
  /// The time of a product whose rows come in runs of `rows`, `stride` elements apart.
  static func seconds(
    rows: Int, columns: Int, depth: Int, stride: Int, tile: GemmTile, isa: ISA
  ) -> Double {
    let efficiency = tile.efficiency(run: rows, n: columns, stride: stride, isa: isa)
    return Double(rows) * Double(columns) * Double(depth) / (60e9 * max(0.01, efficiency))
  }
}
