// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel

/// Softmax and layer normalisation over the last axis, with what is computed before and behind them, by
/// generated code: the passes over a row that stays in the first-level cache.
struct GeneratedRowTactic: Tactic {
  let name = "cpu.rows.f32"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    guard let rows = RowProblem.read(problem) else {
      return .no(because: "not a softmax or normalisation of float32 over the last axis")
    }
    do {
      _ = try rows.kernel(isa)
      return .yes
    } catch {
      return .no(because: error.message)
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.5e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let rows = RowProblem.read(problem) else { throw ApusError(.internalError, "no row problem") }
    return RowTacticKernel(
      kernel: try rows.kernel(isa), rows: rows.rows, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct RowTacticKernel: Kernel {
  let kernel: RowKernel
  let rows: Int
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    kernel.run(
      arguments.pointers(from: 0), result: arguments[argumentCount].mutablePointer, rows: rows,
      pool: pool)
  }
}
