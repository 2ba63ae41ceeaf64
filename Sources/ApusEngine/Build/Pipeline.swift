// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOptimize

/// The build's graph phases in order: the first file to read to know what happens to a network.
///
/// `Builder` runs these, then tunes and packs; see `BuildPhase` for what each phase promises.
struct Pipeline {
  /// The passes of each phase, in order; a phase is repeated until nothing changes, at most `rounds`
  /// times.
  struct Phase: Sendable {
    let phase: BuildPhase
    let passes: [any Pass]
    var rounds = 8
  }

  /// The phases before anything is rounded: what calibration watches, and where precisions are chosen.
  static func preparing(_ traits: DeviceTraits) -> [Phase] {
    let seenThrough = Phase(phase: .canonical, passes: [InferTypes(), RemoveIdentities()], rounds: 1)
    let expanded = Phase(phase: .canonical, passes: [ExpandBlockWeights()], rounds: 1)
    return [seenThrough] + (traits.fastTypes.contains(.uint4) ? [] : [expanded])
      + (traits.fastTypes.contains(.int8) ? quantized(traits) : []) + simplifying
  }

  /// All phases for a device: which types it multiplies fast decides how quantised networks are seen,
  /// and whether others are rounded.
  static func phases(for traits: DeviceTraits, _ precisions: LayerPrecisions = LayerPrecisions())
    -> [Phase]
  {
    var phases = preparing(traits)
    if let insertion = precisions.insertion, traits.fastTypes.contains(.int8) {
      let equalization = EqualizeChannels(insertion.table.scaling)
      phases.append(
        Phase(phase: .calibrated, passes: [equalization, insertion, InferTypes()], rounds: 1))
      phases += quantized(traits) + simplifying
    }
    if let narrowing = precisions.narrowing, traits.fastTypes.contains(.bfloat16) {
      phases.append(Self.narrowing(narrowing))
    }
    if let halving = precisions.halving {
      phases.append(
        Phase(phase: .narrowed, passes: [halving, RemoveDeadNodes(), InferTypes()], rounds: 1))
    }
    if let quartering = precisions.quartering, traits.fastTypes.contains(.uint4) {
      phases.append(
        Phase(phase: .narrowed, passes: [quartering, RemoveDeadNodes(), InferTypes()], rounds: 1))
    }
    phases.append(ordering)
    if traits.joinsAttention { phases.append(joiningAttention) }
    if !traits.fastTypes.isDisjoint(with: [.int8, .bfloat16]) { phases.append(widening) }
    return phases + [fusing]
  }

  /// Quantised products become products of integers before their weights are folded into floats.
  private static func quantized(_ traits: DeviceTraits) -> [Phase] {
    let ofActivations: [any Pass] = traits.fastTypes.contains(.uint8) ? [LowerProductsOfActivations()] : []
    return [
      Phase(
        phase: .quantized,
        passes: [InferTypes(), UseUnsignedActivations(), LowerQuantizedProducts()] + ofActivations
          + [PushQuantizeUp(), RemoveDeadNodes()]),
      Phase(phase: .quantized, passes: [LowerQuantization(), RemoveDeadNodes()]),
    ]
  }

  private static let simplifying: [Phase] = [
    Phase(
      phase: .canonical,
      passes: [
        InferTypes(),
        FoldConstants(),
        ReadReductionAxes(),
        InlineConstantConditions(),
        MergeCommonSubexpressions(),
        RemoveDeadNodes(),
      ]),
    Phase(
      phase: .simplified,
      passes: [
        SimplifyQuantizePairs(),
        DecomposeBatchNormalization(),
        FoldScaleIntoWeights(),
        FoldConstants(),
        RemoveDeadNodes(),
      ]),
  ]

  private static func narrowing(_ pass: UseBFloat16) -> Phase {
    Phase(
      phase: .narrowed,
      passes: [
        pass,
        FoldConstants(),
        PushRoundingUp(),
        MergeCommonSubexpressions(),
        ShareRoundedValues(),
        RoundScaledValues(),
        RemoveDeadNodes(),
        InferTypes(),
      ])
  }

  private static let ordering = Phase(
    phase: .channelsLast,
    passes: [
      ConvertToChannelsLast(),
      SplitTransposedConvolutions(),
      PropagateTransposes(),
      ReadTransposedRightSides(),
      ReadRecurrentWeightsByInput(),
      FoldConstants(),
      MergeCommonSubexpressions(),
      RemoveDeadNodes(),
      InferTypes(),
    ])

  /// Before anything is fused into the products that attention is written out with.
  private static let joiningAttention = Phase(
    phase: .fused, passes: [FuseAttention(), RemoveDeadNodes(), InferTypes()], rounds: 1)

  /// Before what widens is fused into what rounded.
  private static let widening = Phase(
    phase: .fused, passes: [WidenInReaders(), RemoveDeadNodes(), InferTypes()], rounds: 1)

  private static let fusing = Phase(
    phase: .fused,
    passes: [
      SplitConvolutionBias(),
      MergePointwise(),
      FusePrologues(),
      FuseEpilogues(),
      MergeOperandScales(),
      MergeCommonSubexpressions(),
      RemoveDeadNodes(),
      InferTypes(),
    ])

  private var dumper = GraphDumper()
  private let phases: [Phase]

  /// A pipeline of these phases.
  init(_ phases: [Phase]) { self.phases = phases }

  /// Runs every phase on the graph and on the bodies of its control-flow operators.
  mutating func run(_ graph: inout Graph, report: inout BuildReport) throws(ApusError) {
    let context = PassContext()
    report.importedNodeCount = graph.nodeCount
    try dumper.dump(graph, "imported")
    for phase in phases {
      let start = Clock.seconds
      try run(phase, &graph, context)
      report.phases.append((phase.phase.rawValue, Clock.seconds - start))
      Log.debug(1, "phase \(phase.phase.rawValue): \(graph.nodeCount) nodes")
      if Knobs.stopAfter.text == phase.phase.rawValue { break }
    }
    report.optimizedNodeCount = graph.nodeCount
    report.rewrites = context.rewriteCounts.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    report.refusals = context.refusals.map { ($0.rule, $0.node, $0.reason) }
  }

  private mutating func run(_ phase: Phase, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError)
  {
    for _ in 0..<phase.rounds {
      var rewrites = 0
      for pass in phase.passes where context.isEnabled(pass.name) {
        let before = Knobs.verify.integer >= 2 ? graph : nil
        let changes = try run(pass, &graph, context)
        // Inference and clean-up alone do not ask for another round.
        if !(pass is InferTypes) && !(pass is RemoveDeadNodes) { rewrites += changes }
        if changes > 0 { try dumper.dump(graph, "\(phase.phase.rawValue)-\(pass.name)") }
        if let before, changes > 0 { try PassComparison.check(pass.name, before, graph) }
      }
      if rewrites == 0 { break }
    }
    for id in graph.nodes {
      guard var op = graph[id].op as? any ControlFlowOperator else { continue }
      for index in op.bodies.indices { try run(phase, &op.bodies[index], context) }
      graph[id].op = op
    }
  }

  private func run(_ pass: any Pass, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError) -> Int
  {
    do {
      let changes = try pass.run(on: &graph, in: context)
      if changes > 0 { try GraphVerifier.verify(graph) }
      return changes
    } catch {
      throw ApusError(
        error.code, "pass \(pass.name): \(error.message)", hint: error.hint,
        location: error.location)
    }
  }
}
