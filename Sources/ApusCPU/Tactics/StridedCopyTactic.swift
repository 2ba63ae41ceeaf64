// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Every operator that only moves elements, by its own copy plan: long runs by `memcpy`, transposes in
/// square blocks that stay in the first-level cache, anything else element by element.
struct StridedCopyTactic: Tactic {
  let name = "cpu.copy.strided"
  let source = "native"
  let pitches: PitchSupport = [.operands, .results]
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    guard let op = problem.op as? any MovementOperator else {
      return .no(because: "the operator computes")
    }
    guard let type = problem.outputs.first?.dataType, type.bitWidth >= 8 else {
      return .no(because: "elements are smaller than a byte")
    }
    if problem.op is Pad, problem.inputs.count > 2, let fill = problem.inputs[2], fill.constant == nil {
      return .no(because: "what is filled in is computed")
    }
    do {
      _ = try plan(op, problem)
      return .yes
    } catch {
      return .no(because: error.message)
    }
  }

  private func plan(_ op: any MovementOperator, _ problem: Problem) throws(ApusError) -> CopyPlan {
    let plan = try op.copyPlan(
      problem.inputs.map { $0?.constant }, shapes: problem.inputs.map { $0?.shape })
    guard problem.outputs.contains(where: { $0.pitch != nil })
      || problem.inputs.contains(where: { $0?.pitch != nil })
    else { return plan }
    return try spread(plan, problem)
  }

  /// The plan where rows of operands and results have gaps between them.
  private func spread(_ plan: CopyPlan, _ problem: Problem) throws(ApusError) -> CopyPlan {
    guard plan.fill == nil else {
      throw ApusError(.notYetSupported, "what is filled in has gaps between its rows")
    }
    var plan = plan
    for index in plan.copies.indices {
      let copy = plan.copies[index]
      if let operand = problem.inputs[copy.input] {
        (plan.copies[index].sourceOffset, plan.copies[index].sourceStrides) = try spread(
          copy.sourceOffset, copy.sourceStrides, copy.sizes, operand)
      }
      (plan.copies[index].targetOffset, plan.copies[index].targetStrides) = try spread(
        copy.targetOffset, copy.targetStrides, copy.sizes, problem.outputs[copy.output])
    }
    return plan
  }

  /// Offset and strides of one side of a copy. Each axis must go from row to row, or stay within a row.
  private func spread(_ offset: Int, _ strides: [Int], _ sizes: [Int], _ operand: Problem.Operand)
    throws(ApusError) -> (Int, [Int])
  {
    guard let pitch = operand.pitch else { return (offset, strides) }
    let width = operand.rowWidth
    let (row, place) = offset.quotientAndRemainder(dividingBy: width)
    var (first, last) = (place, place)
    var result = strides
    for (axis, stride) in strides.enumerated() where sizes[axis] > 1 {
      if stride % width == 0 {
        result[axis] = stride / width * pitch
      } else {
        first += min(0, (sizes[axis] - 1) * stride)
        last += max(0, (sizes[axis] - 1) * stride)
      }
    }
    guard offset >= 0, first >= 0, last < width else {
      throw ApusError(.notYetSupported, "elements are moved across rows that have gaps between them")
    }
    return (row * pitch + place, result)
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 2e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let op = problem.op as? any MovementOperator else {
      throw ApusError(.internalError, "\(problem.op.name) moves no elements")
    }
    return StridedCopyKernel(
      plan: try plan(op, problem).simplified(), elementSize: problem.outputs[0].dataType.bitWidth / 8,
      inputCount: problem.inputs.count,
      outputByteCounts: problem.outputs.map { $0.dataType.byteCount(of: $0.count) ?? 0 },
      pool: pool)
  }
}

/// Runs a copy plan.
struct StridedCopyKernel: Kernel {
  private let plan: CopyPlan
  private let elementSize: Int
  private let inputCount: Int
  private let outputByteCounts: [Int]
  private let pool: ThreadPool
  private let loops: [CopyLoop]
  private let fill: [UInt8]?
  /// Set where the one copy fills what it leaves between its runs.
  private let gaps: CopyLoop.Gaps?

  var workspaceByteCount: Int { 0 }

  init(
    plan: CopyPlan, elementSize: Int, inputCount: Int, outputByteCounts: [Int], pool: ThreadPool
  ) {
    self.plan = plan
    self.elementSize = elementSize
    self.inputCount = inputCount
    self.outputByteCounts = outputByteCounts
    self.pool = pool
    loops = plan.copies.map { CopyLoop($0, elementSize: elementSize) }
    let fill = plan.fill.map { Array($0.bytes) }
    self.fill = fill
    gaps =
      if let byte = fill?.first, fill?.allSatisfy({ $0 == byte }) ?? false, loops.count == 1, loops[0].isAscending {
        CopyLoop.Gaps(
          byte: byte, first: plan.copies[0].targetOffset * elementSize, end: outputByteCounts[0])
      } else { nil }
  }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    if let fill, gaps == nil { fillResult(arguments[inputCount].mutablePointer, fill) }
    for (index, loop) in loops.enumerated() {
      let copy = plan.copies[index]
      let source = arguments[copy.input].pointer + copy.sourceOffset * elementSize
      let target =
        arguments[inputCount + copy.output].mutablePointer + copy.targetOffset * elementSize
      if let gaps {
        pool.parallelFor(loop.taskCount, (loop, source, target, gaps)) { copy, task in
          copy.0.run(task, copy.1, copy.2, filling: copy.3)
        }
        continue
      }
      pool.parallelFor(loop.taskCount, (loop, source, target)) { copy, task in
        copy.0.run(task, copy.1, copy.2)
      }
    }
  }

  private func fillResult(_ target: UnsafeMutableRawPointer, _ element: [UInt8]) {
    let count = outputByteCounts[0]
    if element.allSatisfy({ $0 == element[0] }) {
      target.initializeMemory(as: UInt8.self, repeating: element[0], count: count)
      return
    }
    for offset in stride(from: 0, to: count, by: element.count) {
      for (index, byte) in element.enumerated() {
        target.storeBytes(of: byte, toByteOffset: offset + index, as: UInt8.self)
      }
    }
  }
}
