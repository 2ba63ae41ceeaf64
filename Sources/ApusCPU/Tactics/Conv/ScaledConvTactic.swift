// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A product that scales the channels of images together with the 1x1 convolution behind it, in single precision:
/// the convolution's weights are scaled instead of the pixels.
struct ScaledConvTactic: Tactic {
  let name = "cpu.conv.f32.scaled"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  /// A chain as the kernel sees it.
  private struct Scaled {
    let conv: ConvProblem
    let ofEachImage: Bool
    let chain: Chain
  }

  private func read(_ problem: Problem) -> Result<Scaled, ConvProblem.Refusal> {
    guard let chain = problem.op as? Chain, chain.stages.count == 2,
      chain.stages[0] is any PointwiseOperator, let stages = try? problem.stages()
    else { return .failure("not an elementwise operator and a convolution") }
    switch (ElementwiseStage.read(stages[0], isa: isa), ConvProblem.read(stages[1])) {
    case (.failure(let refusal), _), (_, .failure(let refusal)): return .failure(refusal)
    case (.success(let stage), .success(let conv)):
      let products: [ScalarExpr] = [.input(0) * .input(1), .input(1) * .input(0)]
      guard let scale = stage.elementwise, products.contains(scale.expression),
        case .perChannel(let ofEachImage)? = scale.operands.first,
        (scale.types.operands + [scale.types.result]).allSatisfy({ $0 == .float32 })
      else { return .failure("not a product with a factor for each channel") }
      guard conv.types.kind == .float32, conv.shape.isPixelwise else {
        return .failure("not a 1x1 convolution in single precision")
      }
      return .success(Scaled(conv: conv, ofEachImage: ofEachImage, chain: chain))
    }
  }

  func support(_ problem: Problem) -> Support {
    switch read(problem) {
    case .failure(let refusal): .no(because: refusal.reason)
    case .success: .yes
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    GemmTile.candidates(isa).map { ["mr": $0.rows, "nv": $0.vectors] }
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard case .success(let scaled) = read(problem) else { return [:] }
    let shape = scaled.conv.shape
    return [
      scaled.chain.operands(of: 1).lowerBound: PackedLayout(
        batch: 1, rows: shape.inChannels, columns: shape.outChannels,
        width: GemmTile(configuration).columns(isa), interleave: 1, segment: shape.inChannels)
    ]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let scaled) = read(problem) else { return .infinity }
    let s = scaled.conv.shape
    let copies = scaled.ofEachImage ? s.batch : 1
    return Double(copies * s.inChannels * s.outChannels) / 1e10
      + GemmEstimate.seconds(
        rows: s.batch * s.outHeight * s.outWidth, columns: s.outChannels, depth: s.inChannels + 1,
        stride: s.inChannels, tile: GemmTile(configuration), isa: isa)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let scaled) = read(problem) else {
      throw ApusError(.internalError, "not scaled channels and a convolution")
    }
    let conv = scaled.conv
    let plan = try ScaledProductPlan(
      batch: conv.shape.batch, pixels: conv.shape.outHeight * conv.shape.outWidth,
      inChannels: conv.shape.inChannels, outChannels: conv.shape.outChannels,
      ofEachImage: scaled.ofEachImage, tile: GemmTile(configuration), isa: isa,
      epilogue: conv.anchored.epilogue, operands: conv.anchored.extras, types: conv.types)
    return ScaledConvKernel(
      plan: plan, weights: scaled.chain.operands(of: 1).lowerBound,
      argumentCount: problem.inputs.count, pool: pool)
  }
}

/// Runs such a plan. Arguments: the images, the factors, the weights, extra operands, the result, scratch memory.
struct ScaledConvKernel: Kernel {
  let plan: ScaledProductPlan
  let weights: Int
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      input: arguments[0].pointer, factors: arguments[1].pointer,
      packedWeights: arguments[weights].pointer, output: arguments[argumentCount].mutablePointer,
      operands: arguments.pointers(from: weights + 1),
      workspace: arguments[argumentCount + 1].mutablePointer, pool: pool)
  }
}
