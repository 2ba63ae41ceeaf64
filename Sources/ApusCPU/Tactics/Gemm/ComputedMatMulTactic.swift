// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A batch of products of two computed matrices of narrow elements (attention in bytes or BF16), which are
/// brought into the order that the instructions read in the same run.
struct ComputedMatMulTactic: Tactic {
  let name = "cpu.gemm.narrow.batched"
  let source = "jit"
  let pool: ThreadPool

  /// Its kernels are of AVX-512 alone, while AVX-VNNI has products of bytes, too.
  var lacks: String? {
    CPUDescription.fastTypes.isDisjoint(with: [.uint8, .bfloat16])
      ? "needs AVX-512 with products of bytes or of BF16 numbers" : nil
  }

  private func shape(_ problem: AnchoredProblem) -> ComputedProductPlan.Shape? {
    guard let op = problem.anchor as? MatMul,
      let sizes = BatchedMatMulTactic.Shape(problem, transposesRight: op.transposesRight)
    else { return nil }
    let members = sizes.batch.reduce(1, *)
    var shape = ComputedProductPlan.Shape(
      m: sizes.m, n: sizes.n, k: sizes.k, transposesRight: op.transposesRight,
      batch: (0..<members).map { index in
        let (a, b) = sizes.offsets(index)
        return GemmPlan.BatchMember(a: a, b: b, c: index * sizes.m * sizes.n)
      })
    shape.leftZero = op.leftZero
    shape.rightZero = op.rightZero
    shape.rightIsUnsigned = problem.inputs.last??.dataType == .uint8
    return shape
  }

  func support(_ problem: Problem) -> Support {
    let anchored = AnchoredProblem(problem)
    guard anchored.anchor is MatMul else { return .no(because: "not a matrix product") }
    if let lacks { return .no(because: lacks) }
    if let reason = anchored.refusal { return .no(because: reason) }
    guard let kind = anchored.types?.kind, kind == .int8 || kind == .bfloat16,
      anchored.inputs.allSatisfy({ $0?.packing == nil && $0?.constant == nil })
    else { return .no(because: "not two computed matrices of bytes or of BF16 numbers") }
    guard let shape = shape(anchored), !shape.batch.isEmpty, shape.m > 0, shape.n > 0, shape.k > 0 else {
      return .no(because: "operands of one dimension, or empty")
    }
    guard !shape.transposesRight || shape.k % kind.interleave == 0 else {
      return .no(because: "rows that end inside a word")
    }
    return .yes
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    GemmTile.candidates(.avx512).map { tile in
      ["mr": tile.rows, "nv": tile.vectors]
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    let anchored = AnchoredProblem(problem)
    guard let shape = shape(anchored), let types = anchored.types else { return .infinity }
    let words = shape.k / types.kind.interleave + 1
    return Double(shape.batch.count)
      * (GemmEstimate.seconds(
        rows: shape.m, columns: shape.n, depth: words, stride: words,
        tile: GemmTile(configuration), isa: .avx512)
        + Double(words * (shape.n + shape.m)) * 2e-10)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    let anchored = AnchoredProblem(problem)
    guard let shape = shape(anchored), let types = anchored.types else {
      throw ApusError(.internalError, "not a product")
    }
    let plan = try ComputedProductPlan(
      shape, tile: GemmTile(configuration), epilogue: anchored.epilogue,
      operands: anchored.extras, types: types)
    return ComputedMatMulKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct ComputedMatMulKernel: Kernel {
  let plan: ComputedProductPlan
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
