// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// An operator whose work on each row is a list of steps, maybe with a prologue and an epilogue.
struct RowProblem {
  let columns: Int
  let rows: Int
  let operands: [RowKernel.OperandKind]
  let types: [DataType]
  let steps: [RowKernel.Step]
  let result: DataType

  /// Reads a problem; nil for one that is none.
  static func read(_ problem: Problem) -> RowProblem? { RowReader(problem).read() }

  /// The loop over the rows.
  func kernel(_ isa: ISA) throws(ApusError) -> RowKernel {
    try RowKernel(
      columns: columns, operands: operands, types: types, steps: steps, result: result, isa: isa)
  }
}

/// Takes a problem apart: its operands are the prologue's, the operator's others and the epilogue's.
private struct RowReader {
  let problem: Problem
  let op: any Operator
  /// The first operand of the operator.
  let value: ScalarExpr
  let prologueCount: Int
  let ownCount: Int
  let epilogue: ScalarExpr

  init(_ problem: Problem) {
    self.problem = problem
    let fused = problem.op as? Fused
    let anchor = fused?.anchor ?? problem.op
    let prologued = anchor as? Prologued
    op = prologued?.anchor ?? anchor
    value = prologued?.prologue ?? .input(0)
    prologueCount = prologued?.prologueInputCount ?? 1
    ownCount = fused?.anchorInputCount ?? problem.inputs.count
    epilogue = fused?.epilogue.expression ?? .input(0)
  }

  func read() -> RowProblem? {
    guard problem.outputs.count == 1, problem.inputs.count >= ownCount, ownCount >= prologueCount,
      let x = problem.inputs[0], x.count > 0, let columns = columns(x.shape),
      let kinds = kinds(columns, x.shape), let steps = steps(columns)
    else { return nil }
    return RowProblem(
      columns: columns, rows: x.count / columns, operands: kinds,
      types: problem.inputs.compactMap { $0?.dataType }, steps: steps,
      result: problem.outputs[0].dataType)
  }

  /// Elements of a row.
  private func columns(_ shape: [Int]) -> Int? {
    let axis: Int
    switch op {
    case let op as Softmax: axis = op.axis
    case let op as LogSoftmax: axis = op.axis
    case let op as LayerNormalization:
      let first = op.axis < 0 ? op.axis + shape.count : op.axis
      guard shape.indices.contains(first), ownCount > prologueCount else { return nil }
      return shape[first...].reduce(1, *)
    default: return nil
    }
    return axis == -1 || axis == shape.count - 1 ? shape.last : nil
  }

  /// How the operands are indexed; nil where one is in none of these ways.
  private func kinds(_ columns: Int, _ shape: [Int]) -> [RowKernel.OperandKind]? {
    var kinds: [RowKernel.OperandKind] = []
    for (index, operand) in problem.inputs.enumerated() {
      guard let operand, operand.packing == nil, operand.pitch == nil else { return nil }
      if (prologueCount..<ownCount).contains(index) {
        guard operand.count == columns, operand.dataType == .float32 else { return nil }
        kinds.append(.perColumn)
        continue
      }
      // An operator without prologue works on floats.
      let isPlain = index == 0 && value == .input(0)
      guard !isPlain || operand.dataType == .float32, let kind = Self.kind(operand.shape, shape, columns)
      else { return nil }
      kinds.append(kind)
    }
    return kinds
  }

  private static func kind(_ operand: [Int], _ shape: [Int], _ columns: Int)
    -> RowKernel.OperandKind?
  {
    let count = operand.reduce(1, *)
    if operand == shape { return .rows }
    if count == 1 { return .scalar }
    guard columns == shape.last, operand.last == columns else { return nil }
    if count == columns { return .perColumn }
    guard operand.count == shape.count else { return nil }
    let shared = zip(operand, shape).prefix { $0 == $1 }.count
    guard operand[shared...].dropLast().allSatisfy({ $0 == 1 }) else { return nil }
    return .rowGroups(of: shape[shared...].dropLast().reduce(1, *))
  }

  private func steps(_ columns: Int) -> [RowKernel.Step]? {
    let count = problem.inputs.count
    let behind = { (result: ScalarExpr) in
      epilogue.substituting { $0 == 0 ? result : .input(ownCount + $0 - 1) }
    }
    // Rows that are stored to be read again lie in the result or in scratch memory.
    let recomputing =
      problem.outputs[0].dataType != .float32 && columns > RowKernel.scratchColumns
    switch op {
    case is Softmax:
      return RowKernel.softmax(
        value, operandCount: count, recomputing: recomputing, epilogue: behind)
    case is LogSoftmax:
      return RowKernel.logSoftmax(value, operandCount: count, epilogue: behind)
    case let op as LayerNormalization:
      return RowKernel.layerNormalization(
        columns: columns, epsilon: op.epsilon, operandCount: count, value: value,
        scale: prologueCount, bias: ownCount > prologueCount + 1 ? prologueCount + 1 : nil,
        recomputing: recomputing, epilogue: behind)
    default: return nil
    }
  }
}
