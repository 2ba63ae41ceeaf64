// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// A movement of 4-byte elements that exchanges two axes, by generated code that transposes blocks in
/// registers.
struct TransposeTactic: Tactic {
  let name = "cpu.copy.transpose"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  /// The two exchanged axes and the others around them.
  private struct Shape {
    var rows: Int
    var columns: Int
    var inStride: Int
    var outStride: Int
    var outer: [(size: Int, source: Int, target: Int)]
    var sourceOffset: Int
    var targetOffset: Int
  }

  private func read(_ problem: Problem) -> Shape? {
    guard let op = problem.op as? any MovementOperator, problem.outputs.count == 1,
      problem.outputs[0].dataType.bitWidth == 32,
      op.movedInputs(count: problem.inputs.count) == [0],
      let plan = try? op.copyPlan(
        problem.inputs.map { $0?.constant }, shapes: problem.inputs.map { $0?.shape }
      ).simplified(), plan.fill == nil, plan.copies.count == 1
    else { return nil }
    let copy = plan.copies[0]
    let axes = copy.sizes.indices
    guard let fromUnit = axes.first(where: { copy.sourceStrides[$0] == 1 }),
      let toUnit = axes.first(where: { copy.targetStrides[$0] == 1 }), fromUnit != toUnit,
      copy.sourceStrides[toUnit] > 0, copy.targetStrides[fromUnit] > 0
    else { return nil }
    let outer = axes.filter { $0 != fromUnit && $0 != toUnit }.map {
      (size: copy.sizes[$0], source: copy.sourceStrides[$0], target: copy.targetStrides[$0])
    }
    return Shape(
      rows: copy.sizes[toUnit], columns: copy.sizes[fromUnit],
      inStride: copy.sourceStrides[toUnit], outStride: copy.targetStrides[fromUnit], outer: outer,
      sourceOffset: copy.sourceOffset, targetOffset: copy.targetOffset)
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil ? .no(because: "no exchange of two axes of 4-byte elements") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.2e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let shape = read(problem) else { throw ApusError(.internalError, "no transposition") }
    let kernel = try TransposeKernel(
      rows: shape.rows, columns: shape.columns, inStride: shape.inStride,
      outStride: shape.outStride, isa: isa)
    return TransposeTacticKernel(
      kernel: kernel, sizes: shape.outer.map(\.size), source: shape.outer.map { $0.source * 4 },
      target: shape.outer.map { $0.target * 4 }, sourceOffset: shape.sourceOffset * 4,
      targetOffset: shape.targetOffset * 4, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct TransposeTacticKernel: Kernel {
  let kernel: TransposeKernel
  let sizes: [Int]
  let source: [Int]
  let target: [Int]
  let sourceOffset: Int
  let targetOffset: Int
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let from = arguments[0].pointer + sourceOffset
    let to = arguments[argumentCount].mutablePointer + targetOffset
    guard !sizes.isEmpty else {
      kernel.run(from, to, pool: pool)
      return
    }
    pool.parallelFor(sizes.reduce(1, *), (self, from, to)) { context, task in
      context.0.transpose(task, context.1, context.2)
    }
  }

  /// Transposes the matrix with this number.
  private func transpose(
    _ number: Int, _ from: UnsafeRawPointer, _ to: UnsafeMutableRawPointer
  ) {
    var rest = number
    var a = from
    var b = to
    for axis in sizes.indices.reversed() {
      let index = rest % sizes[axis]
      rest /= sizes[axis]
      a += index * source[axis]
      b += index * target[axis]
    }
    kernel.run(a, b)
  }
}
