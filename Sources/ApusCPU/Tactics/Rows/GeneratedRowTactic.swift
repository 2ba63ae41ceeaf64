// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Softmax and layer normalisation over the last axis by generated code: the passes over a row that stays
/// in the first-level cache.
struct GeneratedRowTactic: Tactic {
  let name = "cpu.rows.f32"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    RowProblem.read(problem) == nil
      ? .no(because: "not a softmax or normalisation of float32 over the last axis")
      : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.5e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let rows = RowProblem.read(problem) else { throw ApusError(.internalError, "no row problem") }
    let kernel = try RowKernel(
      columns: rows.columns, operands: rows.operands, steps: rows.steps, isa: isa)
    return RowTacticKernel(
      kernel: kernel, rows: rows.rows, argumentCount: problem.inputs.count, pool: pool)
  }
}

/// An operator whose work on each row is a list of steps.
struct RowProblem {
  let columns: Int
  let rows: Int
  let operands: [RowKernel.OperandKind]
  let steps: [RowKernel.Step]

  /// Reads a problem; nil for one that is none.
  static func read(_ problem: Problem) -> RowProblem? {
    guard problem.isFloat32, problem.outputs.count == 1, let x = problem.inputs[0], x.count > 0 else {
      return nil
    }
    switch problem.op {
    case let op as Softmax: return softmax(axis: op.axis, x, RowKernel.softmax)
    case let op as LogSoftmax: return softmax(axis: op.axis, x, RowKernel.logSoftmax)
    case let op as LayerNormalization: return layerNormalization(op, problem, x)
    default: return nil
    }
  }

  private static func softmax(axis: Int, _ x: Problem.Operand, _ steps: [RowKernel.Step])
    -> RowProblem?
  {
    guard axis == -1 || axis == x.shape.count - 1, let columns = x.shape.last else { return nil }
    return RowProblem(
      columns: columns, rows: x.count / columns, operands: [.rows], steps: steps)
  }

  private static func layerNormalization(
    _ op: LayerNormalization, _ problem: Problem, _ x: Problem.Operand
  ) -> RowProblem? {
    let axis = op.axis < 0 ? op.axis + x.shape.count : op.axis
    let columns = x.shape[axis...].reduce(1, *)
    let parameters = problem.inputs.dropFirst()
    guard parameters.allSatisfy({ $0 != nil && $0?.count == columns }), !parameters.isEmpty else {
      return nil
    }
    return RowProblem(
      columns: columns, rows: x.count / columns,
      operands: [.rows] + parameters.map { _ in .perColumn },
      steps: RowKernel.layerNormalization(
        columns: columns, epsilon: op.epsilon, operandCount: problem.inputs.count, scale: 1,
        bias: problem.inputs.count > 2 ? 2 : nil))
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
