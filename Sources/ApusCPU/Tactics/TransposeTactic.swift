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
  let version = 2
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    ExchangedAxes(problem, bitWidth: 32) == nil
      ? .no(because: "no exchange of two axes of 4-byte elements") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1.2e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let shape = ExchangedAxes(problem, bitWidth: 32) else {
      throw ApusError(.internalError, "no transposition")
    }
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
