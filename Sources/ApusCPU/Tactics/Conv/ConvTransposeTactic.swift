// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A transposed convolution with constant weights in phases, as matrix products that store their results
/// between each other's.
struct ConvTransposeTactic: Tactic {
  let name = "cpu.convtranspose.f32.gemm"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private struct Sizes {
    let anchored: AnchoredProblem
    let shape: TransposedConvShape
    let types: ProductTypes
  }

  private func read(_ problem: Problem) -> Result<Sizes, ConvProblem.Refusal> {
    let anchored = AnchoredProblem(problem)
    guard let op = anchored.anchor as? PhasedConvTranspose else {
      return .failure("not a transposed convolution in phases")
    }
    if let reason = anchored.refusal { return .failure(ConvProblem.Refusal(reason)) }
    guard let types = anchored.types else { return .failure("no kernel for these element types") }
    guard anchored.inputs.count == 2, let x = anchored.inputs[0], let w = anchored.inputs[1],
      w.constant != nil
    else { return .failure("the weights are not constant") }
    let y = problem.outputs[0]
    guard y.count > 0, x.count > 0, w.count > 0 else { return .failure("empty operands") }
    let spatial = 1..<(x.shape.count - 1)
    guard let window = try? op.plain.window(input: Array(x.shape[spatial]), kernel: op.kernel)
    else {
      return .failure("sizes that the kernels do not take")
    }
    let shape = TransposedConvShape(
      batch: x.shape[0], input: Array(x.shape[spatial]), output: Array(y.shape[spatial]),
      channels: (x.shape[x.shape.count - 1], y.shape[y.shape.count - 1]), kernel: op.kernel,
      strides: window.strides, dilations: window.dilations, begin: window.begin,
      groups: op.plain.group)
    guard shape.isValid else { return .failure("sizes that the kernels do not take") }
    guard shape.inChannels / shape.groups % types.kind.interleave == 0 else {
      return .failure("an odd number of channels")
    }
    return .success(Sizes(anchored: anchored, shape: shape, types: types))
  }

  func support(_ problem: Problem) -> Support {
    switch read(problem) {
    case .success: .yes
    case .failure(let refusal): .no(because: refusal.reason)
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard case .success(let sizes) = read(problem) else { return [] }
    return GemmTile.candidates(isa, sizes.types.kind).map(\.configuration)
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard case .success(let sizes) = read(problem) else { return [:] }
    let shape = sizes.shape
    return [
      1: PackedLayout(
        batch: shape.phaseCount * shape.groups, rows: shape.taps * shape.inChannels / shape.groups,
        columns: shape.outChannels / shape.groups, width: GemmTile(configuration).columns(isa),
        interleave: sizes.types.kind.interleave)
    ]
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let sizes) = read(problem) else { return .infinity }
    let (shape, interleave) = (sizes.shape, sizes.types.kind.interleave)
    let tile = GemmTile(configuration)
    // Rows of a phase's results, or several where they are short, are the runs of a tile.
    let width = max(1, shape.output[2] / shape.strides[2])
    let rows = width * max(1, tile.rows / width)
    let results = shape.batch * shape.output.reduce(1, *)
    return Double(results) / Double(rows) * Double(shape.groups)
      * GemmEstimate.seconds(
        rows: rows, columns: shape.outChannels / shape.groups,
        depth: shape.taps * shape.inChannels / shape.groups / interleave + 1,
        stride: shape.inChannels / interleave, tile: tile, isa: isa)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let sizes) = read(problem) else {
      throw ApusError(.internalError, "not a transposed convolution")
    }
    let plan = try TransposedConvPlan(
      sizes.shape, tile: GemmTile(configuration), isa: isa, epilogue: sizes.anchored.epilogue,
      operands: sizes.anchored.extras, types: sizes.types)
    return PackedConvKernel(plan: plan, argumentCount: problem.inputs.count, pool: pool)
  }
}
