// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A convolution as matrix products over the kernel's rows, weights stored in panels.
struct ConvTactic: Tactic {
  let name = "cpu.conv.f32.gemm"
  let source = "jit"
  let pitches: PitchSupport = [.operands, .results]
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    switch ConvProblem.read(problem) {
    case .failure(let refusal): return .no(because: refusal.reason)
    case .success(let conv):
      if conv.shape.isDepthwise { return .no(because: "depthwise has a kernel of its own") }
      let isOdd = ConvPlan.memberElements(conv.shape) % conv.types.kind.interleave != 0
      return isOdd && conv.types.kind == .bfloat16 ? .no(because: "an odd number of channels") : .yes
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [] }
    let words = ConvPlan.words(conv.shape, conv.types.kind)
    let overlapping = GemmTile.overlapping(
      isa, conv.types, words: words, results: problem.outputs[0].count,
      columns: conv.shape.outChannels / conv.shape.groups, epilogue: conv.anchored.epilogue,
      operands: conv.anchored.extras)
    return (GemmTile.candidates(isa, conv.types.kind) + overlapping).map(\.configuration)
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [:] }
    let shape = conv.shape
    return [
      1: PackedLayout(
        batch: shape.groups, rows: shape.depth, columns: shape.outChannels / shape.groups,
        width: GemmTile(configuration).columns(isa), interleave: conv.types.kind.interleave,
        segment: ConvPlan.memberElements(shape))
    ]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let conv) = ConvProblem.read(problem) else { return .infinity }
    let shape = conv.shape
    let isProduct = shape.kernelHeight * shape.kernelWidth * shape.strideHeight * shape.strideWidth == 1
    let tile = GemmTile(configuration)
    // Tiles of a 1x1 convolution run on over rows, others end with a row or with a few short ones.
    let together = min(shape.outHeight, max(1, tile.rows / shape.outWidth))
    let rows =
      isProduct ? shape.batch * shape.outHeight * shape.outWidth : shape.outWidth * together
    let times = isProduct ? 1 : Double(shape.batch * shape.outHeight) / Double(together)
    return times * Double(shape.groups)
      * GemmEstimate.seconds(
        rows: rows, columns: shape.outChannels / shape.groups,
        depth: shape.depth / conv.types.kind.interleave + 1,
        stride: shape.strideWidth * shape.inChannels / conv.types.kind.interleave, tile: tile,
        isa: isa)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let conv) = ConvProblem.read(problem) else {
      throw ApusError(.internalError, "not a convolution")
    }
    let plan = try ConvPlan(
      conv.shape, tile: GemmTile(configuration), isa: isa, epilogue: conv.anchored.epilogue,
      operands: conv.anchored.extras, types: conv.types, padValue: conv.padValue,
      inputPitch: conv.inputPitch, resultPitch: conv.resultPitch)
    return PackedConvKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}
