// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import Synchronization

/// A depthwise convolution together with the convolution before it, the 1x1 convolution behind it, or both, computed in
/// strips of rows that stay in the second-level cache; or an elementwise operator together with the 1x1
/// convolution behind it; or a convolution together with the maximum pooling behind it.
struct StripTactic: Tactic {
  let name = "cpu.conv.f32.strips"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool
  private let known: KnownChains

  init(isa: ISA, pool: ThreadPool) {
    self.isa = isa
    self.pool = pool
    known = KnownChains(isa: isa)
  }

  func support(_ problem: Problem) -> Support {
    switch known.read(problem) {
    case .failure(let refusal): .no(because: refusal.reason)
    case .success: .yes
    }
  }

  /// Rows of a strip, the most that a half, a quarter ... of the result is, and the vectors of the tiles of the
  /// products before and behind the depthwise convolution.
  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    guard let stages = stages(problem) else { return [] }
    let height = stages[stages.count - 1].shape.outHeight
    var heights: [Int] = []
    for divisor in [1, 2, 4, 8, 16, 32] {
      let rows = (height + divisor - 1) / divisor
      if rows != heights.last { heights.append(rows) }
    }
    let fitting = heights.filter { Self.bytes(stages, rows: $0) <= Self.mostBytes }
    let vectors = GemmTile.candidates(isa).map(\.vectors)
    return (fitting.isEmpty ? heights.suffix(1) : fitting[...]).flatMap { rows in
      switch (stages.first?.isProduct ?? false, stages.last?.isProduct ?? false) {
      case (true, true):
        vectors.flatMap { before in
          vectors.map { behind in ["rows": rows, "in": before, "out": behind] }
        }
      case (true, false): vectors.map { ["rows": rows, "in": $0] }
      case (false, _): vectors.map { ["rows": rows, "out": $0] }
      } as [TacticConfiguration]
    }
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    guard let chain = problem.op as? Chain, let stages = stages(problem) else { return [:] }
    var layouts: [Int: PackedLayout] = [:]
    for (index, stage) in stages.enumerated() {
      let shape = stage.shape
      let weights = chain.operands(of: index).lowerBound
      if let tile = tile(of: index, configuration, stages) {
        layouts[weights] = PackedLayout(
          batch: 1, rows: shape.depth, columns: shape.outChannels, width: tile.columns(isa),
          interleave: stage.types.kind.interleave, segment: ConvPlan.memberElements(shape))
      } else if stage.isDotWindow(isa) {
        layouts[weights] = DotWindowPlan.packing(shape, stage.types.kind, isa: isa)
      }
    }
    return layouts
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard let stages = stages(problem), let rows = configuration["rows"] else { return .infinity }
    var seconds = 0.0
    for (index, stage) in stages.enumerated() {
      let s = stage.shape
      let results = Double(s.batch * s.outHeight * s.outWidth * s.outChannels)
      guard let tile = tile(of: index, configuration, stages) else {
        seconds += results * Double(s.kernelHeight * s.kernelWidth) / 5e10
        continue
      }
      seconds += GemmEstimate.seconds(
        rows: s.batch * s.outHeight * s.outWidth, columns: s.outChannels,
        depth: s.depth / stage.types.kind.interleave + 1,
        stride: s.strideWidth * s.inChannels / stage.types.kind.interleave, tile: tile, isa: isa)
    }
    // Strips that fill the cache, and such of a few rows only, are a little slower.
    let ratio = Double(Self.bytes(stages, rows: rows)) / Double(Self.bestBytes)
    return seconds * (1 + 0.02 * abs(ratio < 1 ? 1 / ratio - 1 : ratio - 1))
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let chain = problem.op as? Chain, var stages = stages(problem),
      let rows = configuration["rows"]
    else { throw ApusError(.internalError, "not a chain of convolutions") }
    for index in stages.indices { stages[index].tile = tile(of: index, configuration, stages) }
    let plan = try StripPlan(stages, rows: rows, threadCount: pool.threadCount, isa: isa)
    return StripKernel(
      plan: plan,
      operands: stages.enumerated().map { index, stage in
        let first = chain.operands(of: index).lowerBound
        let hasWeights = stage.elementwise == nil && !stage.isMaximum
        return StripKernel.Operands(weights: hasWeights ? first : 0, extras: first + (hasWeights ? 1 : 0))
      },
      argumentCount: problem.inputs.count, pool: pool)
  }

  private func stages(_ problem: Problem) -> [StripPlan.Stage]? {
    try? known.read(problem).get()
  }

  /// The tile of a stage that is a product; nil for others.
  private func tile(of index: Int, _ configuration: TacticConfiguration, _ stages: [StripPlan.Stage])
    -> GemmTile?
  {
    guard stages[index].isProduct else { return nil }
    let vectors = configuration[index == 0 ? "in" : "out"]
    let (s, types) = (stages[index].shape, stages[index].types)
    let tiles = GemmTile.overlapping(
      isa, types, words: ConvPlan.words(s, types.kind),
      results: s.batch * s.outHeight * s.outWidth * s.outChannels, columns: s.outChannels,
      epilogue: stages[index].epilogue, operands: stages[index].operands)
    return (tiles + GemmTile.candidates(isa, types.kind)).first { $0.vectors == vectors }
  }

  /// About what a strip takes between the stages.
  private static func bytes(_ stages: [StripPlan.Stage], rows: Int) -> Int {
    var rows = rows
    var bytes = 0
    for stage in stages.reversed() {
      let s = stage.shape
      rows = (rows - 1) * s.strideHeight + (s.kernelHeight - 1) * s.dilationHeight + 1
      bytes += rows * s.inWidth * s.inChannels * stage.types.kind.elementBytes
    }
    return bytes
  }

  /// What a strip should take, and may: some of a second-level cache, which weights and results share.
  private static let (bestBytes, mostBytes) = (384 << 10, 1 << 20)
}

/// Runs a strip plan.
struct StripKernel: Kernel {
  let plan: StripPlan
  /// Where each stage's operands are among the arguments: weights, if it has any, and the others' first.
  struct Operands {
    let weights: Int
    let extras: Int
  }
  let operands: [Operands]
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    withUnsafeTemporaryAllocation(of: StripPlan.Operands.self, capacity: operands.count) { buffer in
      guard let base = buffer.baseAddress else { return }
      for (stage, own) in operands.enumerated() {
        (base + stage).initialize(
          to: StripPlan.Operands(
            weights: arguments[own.weights].pointer, extras: arguments.pointers(from: own.extras)))
      }
      plan.run(
        input: arguments[0].pointer, operands: base,
        output: arguments[argumentCount].mutablePointer,
        workspace: arguments[argumentCount + 1].mutablePointer, pool: pool)
    }
  }
}

/// Chains read before, by key: the tuner asks about each configuration.
private final class KnownChains: Sendable {
  private let isa: ISA
  private let chains = Mutex<[String: Result<[StripPlan.Stage], ConvProblem.Refusal>]>([:])

  init(isa: ISA) { self.isa = isa }

  func read(_ problem: Problem) -> Result<[StripPlan.Stage], ConvProblem.Refusal> {
    guard problem.op is Chain else { return .failure("not a chain") }
    if let known = chains.withLock({ $0[problem.key] }) { return known }
    let read = stages(problem)
    chains.withLock { $0[problem.key] = read }
    return read
  }

  private func stages(_ problem: Problem) -> Result<[StripPlan.Stage], ConvProblem.Refusal> {
    guard let problems = try? problem.stages() else { return .failure("sizes that are not known") }
    var stages: [StripPlan.Stage] = []
    for problem in problems {
      if problem.op is MaxPool {
        guard let pool = PoolProblem.read(problem, isa: isa), let kind = ProductKind(reading: problem.outputs[0].dataType)
        else { return .failure("pooling without generated code") }
        var stage = StripPlan.Stage(pool.shape, types: ProductTypes(kind, result: problem.outputs[0].dataType))
        stage.isMaximum = true
        stages.append(stage)
        continue
      }
      if problem.op is any PointwiseOperator {
        switch ElementwiseStage.read(problem, isa: isa) {
        case .failure(let refusal): return .failure(refusal)
        case .success(let stage): stages.append(stage)
        }
        continue
      }
      switch ConvProblem.read(problem) {
      case .failure(let refusal): return .failure(refusal)
      case .success(let conv):
        stages.append(
          StripPlan.Stage(
            conv.shape, epilogue: conv.anchored.epilogue, operands: conv.anchored.extras,
            types: conv.types, padValue: conv.padValue))
      }
    }
    return StripPlan.takes(stages, isa: isa)
      ? .success(stages) : .failure("convolutions that cannot run in strips")
  }
}
