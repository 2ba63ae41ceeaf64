// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusOps
import ApusTensor

/// Attention in blocks of queries and keys, the scores of which stay in the second-level cache.
struct AttentionTactic: Tactic {
  let name = "cpu.attention.blocks"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    switch read(problem) {
    case .success: .yes
    case .failure(let refusal): .no(because: refusal.reason)
    }
  }

  /// Blocks whose scores, and the keys and values they meet, fit a second-level cache; fewer queries where
  /// there are few tasks to share out.
  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard case .success(let shape) = read(problem) else { return [TacticConfiguration()] }
    var known: Set<TacticConfiguration> = []
    var result: [TacticConfiguration] = []
    for (queries, keys) in [(64, 512), (128, 512), (64, 256), (32, 512), (128, 256), (256, 256)] {
      // Sizes that a problem does not reach are one configuration.
      let choice: TacticConfiguration = [
        "q": min(queries, (shape.queries + 15) / 16 * 16), "k": min(keys, (shape.keys + 63) / 64 * 64),
      ]
      if known.insert(choice).inserted { result.append(choice) }
    }
    return result
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let shape) = read(problem) else { return .infinity }
    let scores = Double(shape.batch * shape.heads) * Double(shape.queries) * Double(shape.keys)
    let words = Double(shape.width + shape.valueWidth) / Double(shape.kind.interleave)
    return scores * (words / 50e9 + 3e-10)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let shape) = read(problem) else {
      throw ApusError(.internalError, "not attention that this tactic takes")
    }
    let plan = try AttentionPlan(
      shape, queries: configuration["q"] ?? 64, keys: configuration["k"] ?? 512,
      threads: pool.threadCount, isa: isa)
    return AttentionKernel(
      plan: plan, inputCount: problem.inputs.count, hasMask: shape.mask != nil, pool: pool)
  }

  // MARK: Reading problems

  private func read(_ problem: Problem) -> Result<AttentionShape, NativeRefusal> {
    guard let op = problem.op as? Attention else { return .failure("not attention") }
    guard op.softCap == 0, op.leftWindow < 0, op.rightWindow < 0 else {
      return .failure("scores are capped, or keys are seen through a window")
    }
    guard problem.outputs.count == 1, problem.inputs.dropFirst(4).allSatisfy({ $0 == nil }) else {
      return .failure("past or valid keys are given, or more results wanted")
    }
    guard problem.inputs.count >= 3, let q = heads(problem.inputs[0], op.queryHeads),
      let k = heads(problem.inputs[1], op.keyHeads), let v = heads(problem.inputs[2], op.keyHeads),
      let y = heads(problem.outputs[0], op.queryHeads), q.type == k.type, q.type == v.type,
      k.batch == q.batch, v.batch == q.batch, k.heads == v.heads, k.places == v.places,
      k.width == q.width
    else { return .failure("operands that do not fit together") }
    guard q.type == .float32 || q.type == .bfloat16 else { return .failure(NativeRefusal(stringLiteral: "operands of \(q.type)")) }
    var shape = AttentionShape(
      batch: q.batch, heads: q.heads, keyHeads: k.heads, queries: q.places, keys: k.places,
      width: q.width, valueWidth: v.width, scale: op.scale ?? 1 / Double(q.width).squareRoot(),
      query: q.strides, key: k.strides, value: v.strides, result: y.strides)
    shape.isCausal = op.isCausal
    shape.keepsNaN = op.keepsNaN
    shape.kind = q.type == .float32 ? .float32 : .bfloat16
    shape.resultType = problem.outputs[0].dataType
    if problem.inputs.count > 3, let mask = problem.inputs[3] {
      guard mask.dataType == .float32, let strides = maskStrides(mask.shape, shape) else {
        return .failure("a mask that is not of single-precision numbers for every key")
      }
      shape.mask = strides
    }
    if let refusal = shape.refusal(isa) { return .failure(NativeRefusal(stringLiteral: refusal)) }
    return .success(shape)
  }

  private struct Heads {
    let type: DataType
    let batch: Int
    let heads: Int
    let places: Int
    let width: Int
    let strides: AttentionShape.Strides
  }

  /// Reads `[batch, head, place, element]`, or `[batch, place, elements of all heads]`.
  private func heads(_ operand: Problem.Operand?, _ count: Int?) -> Heads? {
    guard let operand, operand.count > 0 else { return nil }
    let shape = operand.shape
    if shape.count == 4 {
      return Heads(
        type: operand.dataType, batch: shape[0], heads: shape[1], places: shape[2], width: shape[3],
        strides: AttentionShape.Strides(
          batch: shape[1] * shape[2] * shape[3], head: shape[2] * shape[3], place: shape[3]))
    }
    guard shape.count == 3, let count, count > 0, shape[2] % count == 0 else { return nil }
    let width = shape[2] / count
    return Heads(
      type: operand.dataType, batch: shape[0], heads: count, places: shape[1], width: width,
      strides: AttentionShape.Strides(batch: shape[1] * shape[2], head: width, place: shape[2]))
  }

  /// The strides of a mask that is broadcast to `[batch, head, query, key]`; nil for another one.
  private func maskStrides(_ mask: [Int], _ shape: AttentionShape) -> AttentionShape.Strides? {
    let full = [shape.batch, shape.heads, shape.queries]
    guard mask.count >= 1, mask.count <= 4, mask.last == shape.keys else { return nil }
    let leading = Array(repeating: 1, count: 4 - mask.count) + mask.dropLast()
    guard zip(leading, full).allSatisfy({ $0 == 1 || $0 == $1 }) else { return nil }
    let heads = leading[2] * shape.keys
    return AttentionShape.Strides(
      batch: leading[0] == 1 ? 0 : leading[1] * heads, head: leading[1] == 1 ? 0 : heads,
      place: leading[2] == 1 ? 0 : shape.keys)
  }
}

struct AttentionKernel: Kernel {
  let plan: AttentionPlan
  let inputCount: Int
  let hasMask: Bool
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      AttentionPlan.Operands(
        query: arguments[0].pointer, key: arguments[1].pointer, value: arguments[2].pointer,
        mask: hasMask ? arguments[3].pointer : nil, result: arguments[inputCount].mutablePointer),
      workspace: arguments[inputCount + 1].mutablePointer, pool: pool)
  }
}
