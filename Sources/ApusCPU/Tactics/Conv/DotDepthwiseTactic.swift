// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A depthwise convolution of bytes or BF16 by dot products.
struct DotDepthwiseTactic: Tactic {
  let name = "cpu.conv.dot.depthwise"
  let source = "jit"
  let pitches: PitchSupport = .results
  let pool: ThreadPool

  var lacks: String? {
    CPUDescription.fastTypes.contains(.int8) ? nil : "needs instructions for dot products"
  }

  func support(_ problem: Problem) -> Support {
    switch ConvProblem.read(problem) {
    case .failure(let refusal): return .no(because: refusal.reason)
    case .success(let conv):
      let kind = conv.types.kind
      guard kind.isOfBytes || kind == .bfloat16 else { return .no(because: "not a convolution of bytes or BF16") }
      guard conv.shape.isDepthwise else { return .no(because: "channels are mixed") }
      guard DotWindowPlan.takes(conv.shape, kind) else { return .no(because: "the window is too large") }
      return .yes
    }
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [:] }
    return [1: DotWindowPlan.packing(conv.shape, conv.types.kind)]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.operations / 1e11
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let conv) = ConvProblem.read(problem) else {
      throw ApusError(.internalError, "not a convolution")
    }
    let plan = try DotWindowPlan(
      conv.shape, epilogue: conv.anchored.epilogue, operands: conv.anchored.extras,
      types: conv.types, padValue: conv.padValue, resultPitch: conv.resultPitch)
    return DotDepthwiseKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct DotDepthwiseKernel: Kernel {
  let plan: DotWindowPlan
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      input: arguments[0].pointer, packedWeights: arguments[1].pointer,
      output: arguments[argumentCount].mutablePointer, operands: arguments.pointers(from: 2),
      pool: pool)
  }
}
