// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// `LRN` over channels in channels-last order, with the pointwise operators behind it.
struct LRNTactic: Tactic {
  let name = "cpu.lrn.f32"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private func kernel(_ problem: Problem) -> NeighbourNormKernel? {
    let fused = problem.op as? Fused
    guard let op = (fused?.anchor ?? problem.op) as? LRN, op.isChannelsLast,
      problem.inputs.count == 1, let x = problem.inputs[0], x.dataType == .float32, x.count > 0,
      let channels = x.shape.last, op.size > 0
    else { return nil }
    let before = (op.size - 1) / 2
    return try? NeighbourNormKernel(
      NeighbourNormKernel.Shape(
        columns: channels, before: before, after: op.size - 1 - before, bias: op.bias,
        factor: op.alpha / Double(op.size), exponent: op.beta,
        epilogue: fused?.epilogue.expression ?? .input(0), resultType: problem.outputs[0].dataType),
      isa: isa)
  }

  func support(_ problem: Problem) -> Support {
    kernel(problem) == nil ? .no(because: "not an LRN of float32 in channels-last order") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 2e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let kernel = kernel(problem), let x = problem.inputs[0], let channels = x.shape.last else {
      throw ApusError(.internalError, "not an LRN")
    }
    return LRNKernel(kernel: kernel, rows: x.count / channels, pool: pool)
  }
}

private struct LRNKernel: Kernel {
  let kernel: NeighbourNormKernel
  let rows: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    kernel.run(arguments[0].pointer, result: arguments[1].mutablePointer, rows: rows, pool: pool)
  }
}
