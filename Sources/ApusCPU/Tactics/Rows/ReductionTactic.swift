// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Reductions of float32 over any axes by generated code.
struct ReductionTactic: Tactic {
  let name = "cpu.reduce.f32.stages"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private struct Reduction {
    let shape: [Int]
    let isReduced: [Bool]
    let function: ColumnKernel.Function
  }

  private func read(_ problem: Problem) -> Result<Reduction, NativeRefusal> {
    guard let op = problem.op as? Reduce else { return .failure("not a Reduce") }
    guard problem.isFloat32, problem.inputs.count == 1, let x = problem.inputs[0], x.count > 0
    else {
      return .failure("not float32, empty, or with axes as an operand")
    }
    guard let axes = try? op.reducedAxes(nil, rank: x.shape.count) else {
      return .failure("axes out of range")
    }
    guard axes.contains(where: { x.shape[$0] > 1 }) else { return .failure("nothing is combined") }
    let count = axes.reduce(1) { $0 * x.shape[$1] }
    guard let function = Self.function(op.function, count: count) else {
      return .failure("the function has no kernel")
    }
    return .success(
      Reduction(
        shape: x.shape, isReduced: x.shape.indices.map { axes.contains($0) }, function: function))
  }

  private static func function(_ function: Reduce.Function, count: Int) -> ColumnKernel.Function? {
    let x = ScalarExpr.input(0)
    switch function {
    case .sum: return ColumnKernel.Function(.sum)
    case .mean: return ColumnKernel.Function(.sum, after: x * .const(1 / Double(count)))
    case .max: return ColumnKernel.Function(.maximum)
    case .min: return ColumnKernel.Function(.minimum)
    case .prod: return ColumnKernel.Function(.product)
    case .sumSquare: return ColumnKernel.Function(.sum, before: x * x)
    case .l2: return ColumnKernel.Function(.sum, before: x * x, after: .unary(.squareRoot, x))
    case .l1: return ColumnKernel.Function(.sum, before: .unary(.absolute, x))
    case .logSum: return ColumnKernel.Function(.sum, after: .unary(.logarithm, x))
    case .logSumExp: return nil
    }
  }

  func support(_ problem: Problem) -> Support {
    switch read(problem) {
    case .success: .yes
    case .failure(let refusal): .no(because: refusal.reason)
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let reduction) = read(problem) else {
      throw ApusError(.internalError, "not a reduction")
    }
    return ReductionKernel(
      plan: try ReductionPlan(
        shape: reduction.shape, isReduced: reduction.isReduced, function: reduction.function,
        isa: isa),
      pool: pool)
  }
}

private struct ReductionKernel: Kernel {
  let plan: ReductionPlan
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
