// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize
import ApusTensor

/// Builds engines: optimises a network, chooses a tactic for every problem, packs the constants.
public struct Builder: Sendable {
  var configuration: BuilderConfiguration
  private let chosenBackend: (any Backend)?
  var progress: ProgressHandler?
  /// A timing cache that several builds share; nil for that of the configuration's file.
  var cache: TimingCache?
  /// Whether layers may be joined into chains, whose kernels belong to no layer alone.
  var joinsChains = true

  /// A builder.
  ///
  /// - Parameters:
  ///   - backend: A device that Apus does not know by name; nil for the configuration's.
  ///   - progress: Called between steps; returning false stops tuning with the best so far.
  public init(
    _ configuration: BuilderConfiguration = BuilderConfiguration(),
    backend: (any Backend)? = nil, progress: ProgressHandler? = nil
  ) {
    self.configuration = configuration
    chosenBackend = backend
    self.progress = progress
  }

  func backend() throws(ApusError) -> any Backend {
    if let chosenBackend { return chosenBackend }
    return try Devices.backend(
      for: configuration.device, threadCount: configuration.threadCount)
  }

  /// The device that engines are built for.
  public func device() throws(ApusError) -> DeviceTraits { try backend().traits }

  /// Builds an engine for a network.
  ///
  /// - Throws: `not-yet-supported` for a precision that this version lacks, `invalid-argument` for a
  ///   configuration that does not fit the network, `resource-limit` when the workspace is too small.
  public func build(_ network: consuming Graph) throws(ApusError) -> Engine {
    let start = Clock.seconds
    let backend = try backend()
    if configuration.isReference {
      let library = KernelLibrary(backend: backend, selections: TimingCache())
      return Engine(graph: network, library: library, report: BuildReport(), isReference: true)
    }
    let chosen = try precisions(for: network, backend.traits)
    let engine = try chosen.builder.build(network, chosen.precisions, backend, start)
    return engine
  }

  /// Builds an engine whose precisions are chosen.
  func build(
    _ network: consuming Graph, _ precisions: LayerPrecisions, _ backend: any Backend,
    _ start: Double
  ) throws(ApusError) -> Engine {
    var graph = network
    var report = BuildReport()
    report.precision = precisions.asked.rawValue
    report.workspaceLimit = configuration.workspaceLimit
    report.notes += precisions.notes
    report.layers = precisions.records
    report.calibration = precisions.table
    // They are as large as the weights that they rounded, and of no use after it.
    report.calibration?.moments = [:]
    report.quantization = precisions.quantization
    let types = try TunedShapes(configuration).types(of: graph)
    if !configuration.shapes.isEmpty || configuration.batch != nil {
      try TunedShapes(configuration).checkRanges(graph)
    }
    var pipeline = Pipeline(Pipeline.phases(for: backend.traits, precisions))
    try pipeline.run(&graph, report: &report)
    report.notes += report.refusals.filter { $0.rule.hasPrefix("StoreWeightsIn") }.map {
      "'\($0.node)' keeps single precision: \($0.reason)"
    }
    let engine = try finish(graph, types, backend, start, report)
    guard configuration.level > 0, let batch = BatchSplit.batch(of: types), BatchSplit.isPossible(graph)
    else { return engine }
    let one = types.map { BatchSplit.resized($0, to: 1) }
    let split = try finish(graph, one, backend, start, report, splitsBatch: true)
    return try fastest(engine, split, batch: batch)
  }

  /// Tunes and packs an optimised network for inputs of these types.
  private func finish(
    _ network: Graph, _ types: [ValueType], _ backend: any Backend, _ start: Double,
    _ begun: BuildReport, splitsBatch: Bool = false
  ) throws(ApusError) -> Engine {
    var (graph, report) = (network, begun)
    let (library, isWhole) = try tune(&graph, types, backend, start, &report)
    let packing = Clock.seconds
    if !report.tuned.isEmpty {
      try PackConstants(library: library).run(on: &graph, types: types)
    }
    report.phases.append((BuildPhase.packed.rawValue, Clock.seconds - packing))
    let hasTime = configuration.timeBudgetSeconds.map { Clock.seconds - start < $0 } ?? true
    if isWhole, hasTime, !splitsBatch, let note = try chooseForks(graph, types, library) {
      report.notes.append(note)
    }
    report.totalSeconds = Clock.seconds - start
    return Engine(
      graph: graph, library: library, report: report, isReference: false, splitsBatch: splitsBatch)
  }

  /// Tunes every problem of a network and returns what was measured, without building an engine.
  ///
  /// - Throws: as `build`.
  public func tuneAll(_ network: Graph) throws(ApusError) -> [BuildReport.Tuned] {
    let backend = try backend()
    var graph = network
    var report = BuildReport()
    let types = try TunedShapes(configuration).types(of: graph)
    let precisions = try precisions(for: network, backend.traits).precisions
    var pipeline = Pipeline(Pipeline.phases(for: backend.traits, precisions))
    try pipeline.run(&graph, report: &report)
    _ = try tune(&graph, types, backend, Clock.seconds, &report)
    return report.tuned
  }

  /// The timing cache that builds share, or that of the configuration's file; an empty one without.
  func timingCache() throws(ApusError) -> TimingCache {
    if let cache { return cache }
    guard let path = configuration.timingCachePath else { return TimingCache() }
    return try TimingCache.load(path)
  }

  /// Chooses kernels, and which operators are computed together; says whether all problems were tuned.
  private func tune(
    _ graph: inout Graph, _ types: [ValueType], _ backend: any Backend, _ start: Double,
    _ report: inout BuildReport
  ) throws(ApusError) -> (library: KernelLibrary, isWhole: Bool) {
    let begin = Clock.seconds
    let cache = try timingCache()
    let selections = TimingCache()
    let library = KernelLibrary(
      backend: backend, selections: selections, workspaceLimit: configuration.workspaceLimit)
    reportForeign(cache, library)
    let problems = try problems(of: graph, types, library)
    let workspace = try configuration.workspaceLimit.map { limit throws(ApusError) in
      try WorkspaceLimit(limit, problems, library)
    }
    report.notes += workspace?.note.map { [$0] } ?? []
    let tuner = Tuner(
      library: library, cache: cache, level: configuration.level,
      workspace: workspace,
      deadline: configuration.timeBudgetSeconds.map { begin + $0 } ?? .infinity,
      weightByteCount: graph.values.reduce(0) { $0 + (graph[$1].constant?.byteCount ?? 0) })
    var timed = 0
    var cancelled = false
    for (index, entry) in problems.enumerated() {
      if cancelled {
        report.notes.append("cancelled: \(index) of \(problems.count) problems are tuned, the others are estimated")
        break
      }
      let outcome = try tuner.tune(entry.problem)
      timed += outcome.timed
      selections.record(
        TimingCache.Entry(
          winner: outcome.choice.id, version: outcome.choice.tactic.version, measurements: []),
        problem: entry.problem.key, device: library.selectionDevice)
      report.tuned.append(outcome.report)
      cancelled = !reportProgress(index + 1, problems.count, timed, begin, start)
    }
    if joinsChains && !cancelled && !problems.isEmpty { try joinChains(in: &graph, types, tuner, &report) }
    if let path = configuration.timingCachePath { try cache.save(path) }
    report.phases.append((BuildPhase.tuned.rawValue, Clock.seconds - begin))
    return (library, !cancelled && !problems.isEmpty)
  }

  /// The problems at the tuned shapes. Sizes that nobody gave stand for 1, which a model may not take:
  /// then nothing is tuned ahead, and kernels are chosen by estimate when real shapes arrive.
  private func problems(of graph: Graph, _ types: [ValueType], _ library: KernelLibrary)
    throws(ApusError) -> [ProblemCollector.Entry]
  {
    do {
      return try ProblemCollector(library: library).problems(of: graph, types: types)
    } catch {
      let isGiven = !configuration.shapes.isEmpty || graph.inputs.allSatisfy {
        graph[$0].type.tensor?.shape != nil
      }
      if isGiven { throw error }
      Log.debug(1, "nothing is tuned: \(error.message)")
      return []
    }
  }

  private func reportForeign(_ cache: TimingCache, _ library: KernelLibrary) {
    let foreign = cache.foreignCount(device: library.selectionDevice)
    if foreign > 0 {
      Log.warning("\(foreign) timing cache entries are of other devices and were not used")
    }
  }

  private func reportProgress(
    _ done: Int, _ total: Int, _ timed: Int, _ begin: Double, _ start: Double
  ) -> Bool {
    guard let progress else { return true }
    let spent = Clock.seconds - begin
    return progress(
      BuildProgress(
        phase: BuildPhase.tuned.rawValue, done: done, total: total, timed: timed,
        elapsedSeconds: Clock.seconds - start,
        remainingSeconds: done > 0 ? spent / Double(done) * Double(total - done) : nil))
  }
}
