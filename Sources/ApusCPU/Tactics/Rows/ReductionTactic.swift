// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Reductions of float32 over any axes by generated code, down columns of bytes and BF16 numbers, too.
struct ReductionTactic: Tactic {
  let name = "cpu.reduce.f32.stages"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private struct Reduction {
    let shape: [Int]
    let isReduced: [Bool]
    let function: ColumnKernel.Function
    let type: DataType
  }

  private func read(_ problem: Problem) -> Result<Reduction, NativeRefusal> {
    guard let op = problem.op as? Reduce else { return .failure("not a Reduce") }
    guard problem.inputs.count == 1, let x = problem.inputs[0], x.count > 0, x.packing == nil,
      problem.outputs[0].dataType == .float32,
      [.float32, .bfloat16, .uint8, .int8].contains(x.dataType), ElementAccess.supports(x.dataType, isa)
    else {
      return .failure("not to float32, empty, or with axes as an operand")
    }
    guard let axes = try? op.reducedAxes(nil, rank: x.shape.count) else {
      return .failure("axes out of range")
    }
    guard axes.contains(where: { x.shape[$0] > 1 }) else { return .failure("nothing is combined") }
    let count = axes.reduce(1) { $0 * x.shape[$1] }
    guard x.dataType == .float32 || Self.hasColumns(x.shape, axes) else {
      return .failure("rows of narrow numbers")
    }
    guard let function = Self.function(op.function, count: count) else {
      return .failure("the function has no kernel")
    }
    return .success(
      Reduction(
        shape: x.shape, isReduced: x.shape.indices.map { axes.contains($0) }, function: function,
        type: x.dataType))
  }

  /// Whether something lies inside of the axes that are reduced.
  private static func hasColumns(_ shape: [Int], _ axes: [Int]) -> Bool {
    shape.indices.last { shape[$0] > 1 }.map { !axes.contains($0) } ?? false
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
        type: reduction.type, isa: isa),
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
