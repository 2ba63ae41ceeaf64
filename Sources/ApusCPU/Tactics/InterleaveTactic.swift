// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// Planes of bytes that become the channels of pixels.
struct InterleaveTactic: Tactic {
  let name = "cpu.copy.interleave"
  let source = "jit"
  let pool: ThreadPool

  private func read(_ problem: Problem) -> ExchangedAxes? {
    guard let axes = ExchangedAxes(problem, bitWidth: 8), InterleaveKernel.takes(planes: axes.rows),
      axes.outStride == axes.rows
    else { return nil }
    return axes
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil ? .no(because: "no few planes of bytes that become channels") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 5e-11
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let axes = read(problem) else { throw ApusError(.internalError, "no planes") }
    let kernel = try InterleaveKernel(
      planes: axes.rows, planeBytes: axes.inStride, count: axes.columns)
    return InterleaveTacticKernel(
      kernel: kernel, outer: axes.outer, sourceOffset: axes.sourceOffset,
      targetOffset: axes.targetOffset, argumentCount: problem.inputs.count, pool: pool)
  }
}

struct InterleaveTacticKernel: Kernel {
  let kernel: InterleaveKernel
  let outer: [(size: Int, source: Int, target: Int)]
  let sourceOffset: Int
  let targetOffset: Int
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let images = outer.reduce(1) { $0 * $1.size }
    for image in 0..<images {
      var rest = image
      var from = arguments[0].pointer + sourceOffset
      var to = arguments[argumentCount].mutablePointer + targetOffset
      for axis in outer.reversed() {
        from += rest % axis.size * axis.source
        to += rest % axis.size * axis.target
        rest /= axis.size
      }
      kernel.run(from, to, pool: pool)
    }
  }
}
