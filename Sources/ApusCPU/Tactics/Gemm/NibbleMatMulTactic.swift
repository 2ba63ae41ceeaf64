// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Matrix product with constant weights of four bits, which are looked up in registers for few rows and
/// unpacked into the caches for many.
struct NibbleMatMulTactic: Tactic {
  let name = "cpu.gemm.f32.u4"
  let source = "jit"
  let pool: ThreadPool

  var lacks: String? { CPUDescription.fastTypes.contains(.uint4) ? nil : "needs AVX-512" }

  func support(_ problem: Problem) -> Support {
    let anchored = AnchoredProblem(problem)
    guard let product = anchored.anchor as? BlockQuantizedMatMul else {
      return .no(because: "not a product with weights of four bits")
    }
    if let reason = anchored.refusal { return .no(because: reason) }
    if let lacks { return .no(because: lacks) }
    guard anchored.types != nil else { return .no(because: "no kernel for these element types") }
    guard anchored.inputs.dropFirst().allSatisfy({ $0 == nil || $0?.constant != nil }) else {
      return .no(because: "the weights are not constant")
    }
    guard product.block.isMultiple(of: 8) else {
      return .no(because: "blocks of \(product.block) weights")
    }
    guard let shape = Self.shape(problem, TacticConfiguration()), shape.m > 0, shape.n > 0, shape.k > 0
    else { return .no(because: "an empty operand") }
    return .yes
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard let shape = Self.shape(problem, TacticConfiguration()) else { return [TacticConfiguration()] }
    let most = min(4, (shape.n + 15) / 16)
    var result: [TacticConfiguration] = [["nv": most, "once": most]]
    if most > 2, shape.m > shape.panel(vectors: most).rowLimit { result.append(["nv": most, "once": 2]) }
    let unpacking = [4, 3, 2].filter { $0 <= max(2, most) }.map { ["nv": $0, "once": 0] as TacticConfiguration }
    return shape.m < 4 ? result : shape.m < 48 ? result + unpacking : unpacking + result
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard let shape = Self.shape(problem, configuration) else { return [:] }
    var result = [1: shape.packing, 2: shape.packingOfScales]
    if shape.hasZeros { result[3] = shape.packingOfScales }
    return result
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard let shape = Self.shape(problem, configuration) else { return .infinity }
    let weights = Double(shape.k) * Double(shape.panels * shape.vectors * 16)
    let tiles = Double((shape.m + shape.tileRows - 1) / shape.tileRows)
    // Instructions for each vector of weights: those that look it up, and one for each row.
    let perTile = shape.unpacks ? 0 : 2.0
    let once = shape.unpacks ? 6.0 : 0
    return weights / 16 * (once + tiles * perTile + Double(shape.m)) / 4e9
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    let anchored = AnchoredProblem(problem)
    guard let shape = Self.shape(problem, configuration), let types = anchored.types else {
      throw ApusError(.internalError, "not a product")
    }
    let plan = try NibbleProductPlan(
      shape, epilogue: anchored.epilogue, extras: anchored.extras, types: types)
    return NibbleMatMulKernel(
      plan: plan, anchorCount: anchored.inputs.count, argumentCount: problem.inputs.count, pool: pool)
  }

  private static func shape(_ problem: Problem, _ configuration: TacticConfiguration)
    -> NibbleProductPlan.Shape?
  {
    let anchored = AnchoredProblem(problem)
    let inputs = Array(anchored.inputs)
    guard let product = anchored.anchor as? BlockQuantizedMatMul, (3...4).contains(inputs.count),
      let a = inputs[0], let q = inputs[1], let scales = inputs[2], q.shape.count == 2,
      a.shape.last == q.shape[0]
    else { return nil }
    return NibbleProductPlan.Shape(
      m: a.shape.dropLast().reduce(1, *), n: q.shape[1], k: q.shape[0],
      block: min(product.block, (q.shape[0] + 7) / 8 * 8),
      vectors: configuration["nv"] ?? 4, vectorsAtOnce: configuration["once"] ?? 4,
      hasHalfScales: scales.dataType == .float16, hasZeros: inputs.count > 3 && inputs[3] != nil)
  }
}

private struct NibbleMatMulKernel: Kernel {
  let plan: NibbleProductPlan
  let anchorCount: Int
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let needsWorkspace = plan.workspaceByteCount > 0
    plan.run(
      NibbleProductPlan.Operands(
        a: arguments[0].pointer, words: arguments[1].pointer, scales: arguments[2].pointer,
        zeros: plan.shape.hasZeros ? arguments[3].pointer : nil,
        c: arguments[argumentCount].mutablePointer, extras: arguments.pointers(from: anchorCount),
        workspace: needsWorkspace ? arguments[argumentCount + 1].mutablePointer : nil),
      pool: pool)
  }
}
