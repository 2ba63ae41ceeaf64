// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Maximum and average pooling over one or two spatial axes in channels-last order, by generated window
/// kernels.
struct WindowPoolTactic: Tactic {
  let name = "cpu.pool.f32.window"
  let source = "jit"
  let pitches: PitchSupport = [.operands, .results]
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    PoolProblem.read(problem, isa: isa) == nil ? .no(because: "not pooling of a type with kernels in channels-last order") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let pool = PoolProblem.read(problem, isa: isa) else {
      throw ApusError(.internalError, "not pooling")
    }
    return WindowTacticKernel(
      plan: try WindowPlan(
        pool.mode, pool.shape, isa: isa, types: ProductTypes(.float32, result: problem.outputs[0].dataType),
        inputType: problem.outputs[0].dataType, inputPitch: problem.inputs[0]?.pitch,
        resultPitch: problem.outputs[0].pitch),
      weightArgument: nil, argumentCount: 1, extrasFrom: 1, pool: self.pool)
  }
}
