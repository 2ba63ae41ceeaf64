// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// A few planes of elements that become the channels of pixels.
struct InterleaveTactic: Tactic {
  let name = "cpu.copy.interleave"
  let source = "jit"
  let pool: ThreadPool

  var lacks: String? {
    InterleaveKernel.takes(planes: 3, .words) ? nil : "needs AVX2"
  }

  /// The planes of one image, and where images start, in bytes.
  private struct Planes {
    var planes: Int
    var stride: Int
    var count: Int
    var form: InterleaveKernel.Form
    var outer: [(size: Int, source: Int, target: Int)]
    var sourceOffset = 0
    var targetOffset = 0
  }

  private func read(_ problem: Problem) -> Planes? {
    let found = (problem.op as? PlanesToPixels).map { rounded(problem, $0) } ?? moved(problem)
    guard let found, InterleaveKernel.takes(planes: found.planes, count: found.count, found.form) else {
      return nil
    }
    return found
  }

  private func moved(_ problem: Problem) -> Planes? {
    for (bytes, form) in [(1, InterleaveKernel.Form.bytes), (4, .words)] {
      guard let axes = ExchangedAxes(problem, bitWidth: 8 * bytes), axes.outStride == axes.rows else {
        continue
      }
      return Planes(
        planes: axes.rows, stride: axes.inStride, count: axes.columns, form: form,
        outer: axes.outer.map { ($0.size, $0.source * bytes, $0.target * bytes) },
        sourceOffset: axes.sourceOffset * bytes, targetOffset: axes.targetOffset * bytes)
    }
    return nil
  }

  private func rounded(_ problem: Problem, _ op: PlanesToPixels) -> Planes? {
    guard op.to == .bfloat16, let x = problem.inputs[0], x.dataType == .float32, x.shape.count == 4,
      (x.shape[1] + 1) / 2 * 2 == op.channels
    else { return nil }
    let pixels = x.shape[2] * x.shape[3]
    return Planes(
      planes: x.shape[1], stride: pixels, count: pixels, form: .bfloat16,
      outer: [(x.shape[0], x.shape[1] * pixels * 4, op.channels * pixels * 2)])
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil ? .no(because: lacks ?? "no few planes that become channels") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 5e-11
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let planes = read(problem) else { throw ApusError(.internalError, "no planes") }
    let kernel = try InterleaveKernel(
      planes: planes.planes, planeStride: planes.stride, count: planes.count, planes.form)
    return InterleaveTacticKernel(
      kernel: kernel, outer: planes.outer, sourceOffset: planes.sourceOffset,
      targetOffset: planes.targetOffset, argumentCount: problem.inputs.count, pool: pool)
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
