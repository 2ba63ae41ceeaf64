// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A depthwise convolution: every channel with a kernel of its own, vectorised over channels.
struct DepthwiseTactic: Tactic {
  let name = "cpu.conv.f32.depthwise"
  let source = "jit"
  let pitches: PitchSupport = [.operands, .results]
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    switch ConvProblem.read(problem) {
    case .failure(let refusal): return .no(because: refusal.reason)
    case .success(let conv):
      guard conv.shape.isDepthwise else { return .no(because: "channels are mixed") }
      switch conv.types.kind {
      case .float32, .bfloat16: return .yes
      case .int8, .widenedInt8, .int16, .float16Weights: return .no(because: "not of floating-point numbers")
      }
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [TacticConfiguration()] }
    let bytes = conv.types.kind == .bfloat16 ? 2 : 4
    return [TacticConfiguration()]
      + WindowPlan.channelBlocks(conv.shape, elementBytes: bytes).map { ["channels": $0] }
      + WindowPlan.columnBlocks(conv.shape, elementBytes: bytes).map { ["columns": $0] }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.operations / 2e10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let conv) = ConvProblem.read(problem) else {
      throw ApusError(.internalError, "not a convolution")
    }
    let plan = try WindowPlan(
      .depthwise, conv.shape, isa: isa, epilogue: conv.anchored.epilogue,
      operands: conv.anchored.extras, types: conv.types,
      inputType: conv.types.kind == .bfloat16 ? .bfloat16 : .float32,
      inputPitch: conv.inputPitch, resultPitch: conv.resultPitch, channelBlock: configuration["channels"],
      columnBlock: configuration["columns"])
    return WindowTacticKernel(
      plan: plan, weightArgument: 1, argumentCount: problem.inputs.count, extrasFrom: 2, pool: pool)
  }
}

/// Runs a window plan: a depthwise convolution, or pooling (no weights).
struct WindowTacticKernel: Kernel {
  let plan: WindowPlan
  let weightArgument: Int?
  let argumentCount: Int
  let extrasFrom: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      input: arguments[0].pointer, weights: weightArgument.map { arguments[$0].pointer },
      output: arguments[argumentCount].mutablePointer,
      operands: arguments.pointers(from: extrasFrom), pool: pool)
  }
}
