// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Softmax, layer normalisation and reductions over the last axis by generated code: the passes over a
/// row that stays in the first-level cache.
struct GeneratedRowTactic: Tactic {
  let name = "cpu.rows.f32"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private struct Rows {
    let columns: Int
    let rows: Int
    let operands: [RowKernel.OperandKind]
    let steps: [RowKernel.Step]
  }

  private func read(_ problem: Problem) -> Rows? {
    guard problem.isFloat32, problem.outputs.count == 1, let x = problem.inputs[0], x.count > 0 else {
      return nil
    }
    switch problem.op {
    case let op as Softmax:
      guard op.axis == -1 || op.axis == x.shape.count - 1, let columns = x.shape.last else {
        return nil
      }
      return Rows(
        columns: columns, rows: x.count / columns, operands: [.rows], steps: RowKernel.softmax)
    case let op as LayerNormalization: return layerNormalization(op, problem, x)
    case let op as Reduce: return reduction(op, problem, x)
    default: return nil
    }
  }

  private func layerNormalization(
    _ op: LayerNormalization, _ problem: Problem, _ x: Problem.Operand
  ) -> Rows? {
    let axis = op.axis < 0 ? op.axis + x.shape.count : op.axis
    let columns = x.shape[axis...].reduce(1, *)
    let parameters = problem.inputs.dropFirst()
    guard parameters.allSatisfy({ $0 != nil && $0?.count == columns }), !parameters.isEmpty else {
      return nil
    }
    return Rows(
      columns: columns, rows: x.count / columns,
      operands: [.rows] + parameters.map { _ in .perColumn },
      steps: RowKernel.layerNormalization(
        columns: columns, epsilon: op.epsilon, operandCount: problem.inputs.count, scale: 1,
        bias: problem.inputs.count > 2 ? 2 : nil))
  }

  private func reduction(_ op: Reduce, _ problem: Problem, _ x: Problem.Operand) -> Rows? {
    guard problem.inputs.count == 1, let axes = op.axes, !axes.isEmpty else { return nil }
    let rank = x.shape.count
    let resolved = Set(axes.map { $0 < 0 ? $0 + rank : $0 })
    guard let first = resolved.min(), resolved == Set(first..<rank) else { return nil }
    let columns = x.shape[first...].reduce(1, *)
    let mean = ScalarExpr.input(0) * .const(1 / Double(columns))
    let square = ScalarExpr.input(0) * .input(0)
    let steps: [RowKernel.Step]
    switch op.function {
    case .sum: steps = RowKernel.reduction(.sum)
    case .mean: steps = RowKernel.reduction(.sum, after: mean)
    case .max: steps = RowKernel.reduction(.maximum)
    case .min: steps = RowKernel.reduction(.minimum)
    case .prod: steps = RowKernel.reduction(.product)
    case .sumSquare: steps = RowKernel.reduction(.sum, before: square)
    case .l2:
      steps = RowKernel.reduction(
        .sum, before: square, after: .unary(.squareRoot, .input(0)))
    case .l1: steps = RowKernel.reduction(.sum, before: .unary(.absolute, .input(0)))
    default: return nil
    }
    return Rows(columns: columns, rows: x.count / columns, operands: [.rows], steps: steps)
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil
      ? .no(because: "not a softmax, normalisation or reduction of float32 over the last axis")
      : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.5e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let rows = read(problem) else { throw ApusError(.internalError, "no row problem") }
    let kernel = try RowKernel(
      columns: rows.columns, operands: rows.operands, steps: rows.steps, isa: isa)
    return RowTacticKernel(
      kernel: kernel, rows: rows.rows, argumentCount: problem.inputs.count, pool: pool)
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
