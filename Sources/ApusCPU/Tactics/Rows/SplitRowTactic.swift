// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Softmax and layer normalisation of a few long rows, each cut into parts.
struct SplitRowTactic: Tactic {
  let name = "cpu.rows.f32.split"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  /// With more rows than this there are tasks enough.
  private static let mostRows = 16

  private func read(_ problem: Problem) -> RowProblem? {
    guard let rows = RowProblem.read(problem), rows.columns >= 2 * SplitRowPlan.chunk,
      rows.rows <= Self.mostRows, rows.result == .float32,
      rows.types.allSatisfy({ $0 == .float32 }),
      rows.operands.allSatisfy({ $0 == .rows || $0 == .perColumn })
    else { return nil }
    return rows
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil ? .no(because: "not a softmax or normalisation of few long rows") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.4e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let rows = read(problem) else { throw ApusError(.internalError, "no row problem") }
    if problem.op is Softmax {
      return SplitSoftmaxKernel(
        plan: try SplitSoftmaxPlan(columns: rows.columns, rows: rows.rows, isa: isa), pool: pool)
    }
    let plan = try SplitRowPlan(
      columns: rows.columns, rows: rows.rows, operands: rows.operands, steps: rows.steps, isa: isa)
    return SplitRowKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}

private struct SplitRowKernel: Kernel {
  let plan: SplitRowPlan
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      arguments.pointers(from: 0), result: arguments[argumentCount].mutablePointer,
      workspace: arguments[argumentCount + 1].mutablePointer, pool: pool)
  }
}

private struct SplitSoftmaxKernel: Kernel {
  let plan: SplitSoftmaxPlan
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      arguments[0].pointer, result: arguments[1].mutablePointer,
      workspace: arguments[2].mutablePointer, pool: pool)
  }
}
