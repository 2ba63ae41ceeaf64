// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel

/// A 3x3 convolution of numbers of single precision, of type `bfloat16` or of bytes by Winograd's minimal
/// filtering: fewer multiplications for more memory traffic and larger weights.
///
/// The sums of bytes are not exact (see `WinogradPlan`). Results that are rounded to bytes or to `bfloat16` hardly show
/// it: few differ, by one step of the largest at most, which is what `ResultComparison` allows. Others must be exact, so
/// they are refused.
struct WinogradTactic: Tactic {
  let name = "cpu.conv.f32.winograd"
  let source = "jit"
  let pitches: PitchSupport = [.operands, .results]
  let isa: ISA
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    switch ConvProblem.read(problem) {
    case .failure(let refusal): return .no(because: refusal.reason)
    case .success(let conv):
      if conv.types.kind.isOfBytes {
        guard conv.types.result.bitWidth == 8 || conv.types.result == .bfloat16 else {
          return .no(because: "sums of bytes that are not rounded must be exact")
        }
      }
      guard conv.types.kind != .bfloat16 || conv.shape.inChannels % 2 == 0 else {
        return .no(because: "an odd number of channels")
      }
      guard WinogradPlan.takes(conv.shape, conv.types.kind) else {
        return .no(because: "not 3x3 with steps of one and eight channels or more")
      }
      let needed = try? ExpressionEmitter.registersNeeded(
        conv.anchored.epilogue, isa: isa, types: [conv.types.kind.sumType] + conv.types.operands,
        result: conv.types.result)
      guard let needed, needed <= WinogradKernel.epilogueRegisters(isa, m: 4) else {
        return .no(because: "the epilogue needs too many registers")
      }
      return .yes
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [] }
    // Weights packed for other sizes of the same model are read as they are.
    let stored = problem.inputs[1]?.packing
    var result: [TacticConfiguration] = []
    for m in Self.sizes(conv.types) {
      let tile = Self.tile(
        conv.shape, m: m, width: stored?.width, isa: isa, WinogradPlan.products(conv.types.kind, m: m))
      for kilobytes in conv.types.kind.isOfBytes ? [640, 1536, 4096] : [640, 4096] {
        result.append(["m": m, "mr": tile.rows, "nv": tile.vectors, "kb": kilobytes])
      }
    }
    return result
  }

  private static func sizes(_ types: ProductTypes) -> [Int] {
    switch types.kind {
    // Twice rounded, the larger transform is too far from the weights.
    case .float16Weights: [2]
    // 16-bit products cost twice as much, which the smaller transform does not make up for.
    case .int8, .widenedInt8: [4]
    // The smaller transform rounds both sides, which results of single precision would show.
    case .bfloat16 where types.result == .float32: [4]
    default: [4, 2]
    }
  }

  private static func tile(_ shape: ConvShape, m: Int, width: Int?, isa: ISA, _ product: ProductKind) -> GemmTile {
    GemmTile.choose(
      run: tileCount(shape, m: m), n: shape.outChannels, stride: shape.inChannels + 16, isa: isa,
      width: width, kind: product)
  }

  private static func tileCount(_ shape: ConvShape, m: Int) -> Int {
    shape.batch * ((shape.outHeight + m - 1) / m) * ((shape.outWidth + m - 1) / m)
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard case .success(let conv) = ConvProblem.read(problem) else { return [:] }
    let m = configuration["m"] ?? 4
    let product = WinogradPlan.products(conv.types.kind, m: m)
    return [
      1: PackedLayout(
        winograd: m, rows: conv.shape.inChannels, columns: conv.shape.outChannels,
        width: GemmTile(configuration).columns(isa), interleave: product.interleave,
        exactRun: product == .int16 ? WinogradPlan.exactRun : 0)
    ]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let conv) = ConvProblem.read(problem) else { return .infinity }
    let shape = conv.shape
    let m = configuration["m"] ?? 4
    let places = Double((m + 2) * (m + 2))
    let tiles = Self.tileCount(shape, m: m)
    let product = WinogradPlan.products(conv.types.kind, m: m)
    let words = shape.inChannels / product.interleave
    let products = GemmEstimate.seconds(
      rows: tiles, columns: shape.outChannels, depth: words, stride: words + 16,
      tile: GemmTile(configuration), isa: isa)
    let elements = places * Double(tiles) * Double(shape.inChannels + shape.outChannels)
    // Written and read again, and what the transforms themselves take; then the weights.
    let weights = places * Double(words * shape.outChannels)
    return places * products * 1.1 + elements * 0.25e-9 + weights * 0.1e-9
      + (configuration["kb"] == 640 ? 0 : 1e-9)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let conv) = ConvProblem.read(problem) else {
      throw ApusError(.internalError, "not a convolution")
    }
    let plan = try WinogradPlan(
      conv.shape, m: configuration["m"] ?? 4, tile: GemmTile(configuration),
      blockBytes: (configuration["kb"] ?? 640) * 1024, isa: isa, epilogue: conv.anchored.epilogue,
      operands: conv.anchored.extras, types: conv.types, padValue: conv.padValue,
      inputPitch: conv.inputPitch, resultPitch: conv.resultPitch)
    return PackedConvKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}
