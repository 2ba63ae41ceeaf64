// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A batch of matrix products both of whose sides are computed (attention). The right sides are read
/// where they lie, row by row; all products of the batch are one plan.
struct BatchedMatMulTactic: Tactic {
  let name = "cpu.gemm.f32.batched"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  struct Shape {
    let m: Int
    let n: Int
    let k: Int
    let batch: [Int]
    let aStrides: [Int]
    let bStrides: [Int]
  }

  func support(_ problem: Problem) -> Support {
    let anchored = AnchoredProblem(problem)
    guard let product = anchored.anchor as? MatMul else { return .no(because: "not a matrix product") }
    guard product.isPlain else { return .no(because: "zero points, or a transposed right side") }
    if let reason = anchored.refusal { return .no(because: reason) }
    guard let types = anchored.types, types.kind == .float32,
      anchored.inputs.allSatisfy({ $0?.packing == nil })
    else { return .no(because: "not float32, or packed") }
    guard let shape = Shape(anchored), shape.m > 0, shape.n > 0, shape.k > 0 else {
      return .no(because: "operands of one dimension, or empty")
    }
    guard problem.outputs[0].count > 0 else { return .no(because: "the batch is empty") }
    guard anchored.extras.allSatisfy({ $0 != .full }) || shape.batch.reduce(1, *) >= 1 else {
      return .no(because: "an operand of the result's shape")
    }
    return .yes
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    GemmTile.candidates(isa).map { tile in
      ["mr": tile.rows, "nv": tile.vectors]
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard let shape = Shape(AnchoredProblem(problem)) else { return .infinity }
    let batch = shape.batch.reduce(1, *)
    return Double(batch)
      * (GemmEstimate.seconds(
        rows: shape.m, columns: shape.n, depth: shape.k, stride: shape.k,
        tile: GemmTile(configuration), isa: isa)
        + Double(shape.k * shape.n) * 2e-10)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    let anchored = AnchoredProblem(problem)
    guard let shape = Shape(anchored) else { throw ApusError(.internalError, "not a product") }
    let count = shape.batch.reduce(1, *)
    let members = (0..<count).map { index in
      let (a, b) = shape.offsets(index)
      return GemmPlan.BatchMember(a: a, b: b, c: index * shape.m * shape.n)
    }
    let plan = try GemmPlan(
      m: shape.m, n: shape.n, k: shape.k, lda: shape.k, ldc: shape.n, ldb: shape.n,
      tile: GemmTile(configuration), isa: isa, epilogue: anchored.epilogue,
      operands: anchored.extras, types: anchored.types ?? ProductTypes(), batch: members)
    return MatMulKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}

extension BatchedMatMulTactic.Shape {
  /// Reads a problem; nil when an operand is no batch of matrices.
  init?(_ problem: AnchoredProblem, transposesRight: Bool = false) {
    guard problem.inputs.count == 2, let a = problem.inputs[0]?.shape,
      var b = problem.inputs[1]?.shape, a.count >= 2, b.count >= 2
    else { return nil }
    if transposesRight { b.swapAt(b.count - 2, b.count - 1) }
    let rank = max(a.count, b.count) - 2
    let left = Array(repeating: 1, count: rank + 2 - a.count) + a.dropLast(2)
    let right = Array(repeating: 1, count: rank + 2 - b.count) + b.dropLast(2)
    (m, k, n) = (a[a.count - 2], a[a.count - 1], b[b.count - 1])
    guard b[b.count - 2] == k else { return nil }
    func strides(_ dims: [Int], _ size: Int) -> [Int] {
      let dense = CopyPlan.rowMajorStrides(dims)
      return dims.indices.map { dims[$0] == 1 ? 0 : dense[$0] * size }
    }
    batch = zip(left, right).map { max($0, $1) }
    aStrides = strides(left, m * k)
    bStrides = strides(right, k * n)
  }

  /// The element offsets of the two sides of product `index`.
  func offsets(_ index: Int) -> (a: Int, b: Int) {
    var rest = index
    var a = 0
    var b = 0
    for axis in batch.indices.reversed() {
      let position = rest % batch[axis]
      rest /= batch[axis]
      a += position * aStrides[axis]
      b += position * bStrides[axis]
    }
    return (a, b)
  }
}
