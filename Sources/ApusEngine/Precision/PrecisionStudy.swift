// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize
import ApusTensor

/// Builds engines of a network with different precisions and measures what they cost and how much
/// their results differ from single precision.
///
/// Every figure is of a real engine with all its fusions; builds share one timing cache, so that only
/// problems that are new are tuned.
package final class PrecisionStudy {
  package typealias Precision = BuilderConfiguration.Precision

  /// A layer whose precision can be chosen.
  struct Layer {
    let name: String
    /// The nodes of the imported network in it.
    let sources: [String]
    /// The precisions there are kernels for, `fp32` among them.
    let choices: [Precision]
    /// What `int8` rounds: the left side, and the tensor whose range it has.
    let rounded: (operand: String, range: String)?
  }

  /// The layers in order.
  let layers: [Layer]
  /// The ranges for int8.
  package var table: CalibrationTable
  private let graph: Graph
  private let builder: Builder
  /// What was measured with little effort for engines that are only looked at: their kernels are not to be those of
  /// the engine that is chosen.
  private let drafts = TimingCache()
  private let backend: any Backend
  private let samples: HeldOutSamples
  private let exact: [[Tensor]]
  private var scores: ClassScores?
  private let single: Engine
  private let rounded = RoundedWeights()
  /// Samples that were calibrated with, with the results in single precision.
  private var calibrated: [(inputs: [String: Tensor], exact: [Tensor])] = []
  private static let calibratedLimit = 96
  /// Of these, those that ranges are compared on. All see the same, so that few are enough.
  private static let comparedLimit = 64

  /// - Parameters:
  ///   - network: As it was imported.
  ///   - builder: Its configuration says everything but the precisions.
  /// - Throws: as `Builder.build`.
  package init(_ network: Graph, _ builder: Builder, _ table: CalibrationTable, _ samples: HeldOutSamples)
    throws(ApusError)
  {
    var builder = builder
    builder.cache = try builder.timingCache()
    // Its builds are steps of something that reports progress itself.
    builder.progress = nil
    backend = try builder.backend()
    var graph = network
    var pipeline = Pipeline(Pipeline.preparing(backend.traits))
    var report = BuildReport()
    try pipeline.run(&graph, report: &report)
    self.table = table
    self.graph = graph
    self.builder = builder
    self.samples = samples
    layers = try Self.layers(
      of: graph, table, backend.traits, block: builder.configuration.int4Group)
    single = try builder.build(graph, LayerPrecisions(), backend, Clock.seconds)
    exact = try Self.results(single, samples.batches)
    scores = Self.scores(exact, single.outputs).map { ClassScores($0, labels: samples.labels) }
  }

  /// Looks at samples that were calibrated with.
  ///
  /// Ranges are judged by some of them. Where answers are classes they also show how close these are, and how
  /// much rounding moves them: a few ranges do not learn samples by heart, and the some dozens that are set
  /// aside are few for that.
  package func observe(_ others: OtherSamples) throws(ApusError) {
    var rows: [[Double]] = []
    var count = 0
    let labels = try others.forEachBatch { (batch) throws(ApusError) in
      let results = try Self.results(single, [batch])
      rows += Self.scores(results, single.outputs) ?? []
      if count < Self.calibratedLimit { calibrated.append((batch, results[0])) }
      count += Calibration.samples(in: batch)
    }
    let compared = exact + calibrated.map(\.exact)
    guard scores != nil, let own = Self.scores(compared, single.outputs) else { return }
    let shared = own.count - (Self.scores(exact, single.outputs)?.count ?? 0)
    scores = ClassScores(
      own, labels: samples.labels.flatMap { held in labels.map { held + $0.prefix(shared) } },
      others: Array(rows.dropFirst(shared)), otherLabels: labels.map { Array($0.dropFirst(shared)) })
  }

  /// The metric that fits the network.
  var usualMetric: AccuracyMetric { scores == nil ? .noise : .top1 }

  private static func layers(
    of graph: Graph, _ table: CalibrationTable, _ traits: DeviceTraits, block: Int
  ) throws(ApusError) -> [Layer] {
    var int8: [NodeID: (operand: String, range: String)] = [:]
    if traits.fastTypes.contains(.int8) {
      for product in try QuantizableProducts(graph).products {
        let entry = table.entries[graph[product.input].name]
        if entry.map({ !$0.range.isEmpty }) ?? false {
          int8[product.node] = (graph[product.input].name, graph[product.root].name)
        }
      }
    }
    var layers: [Layer] = []
    for id in try graph.topologicalOrder() {
      var choices = [Precision.fp32]
      if traits.fastTypes.contains(.bfloat16), UseBFloat16.takes(graph[id], graph) { choices.append(.bf16) }
      if StoreWeightsInHalf.takes(graph[id], graph), !(graph[id].op is Gather) { choices.append(.fp16) }
      if int8[id] != nil { choices.append(.int8) }
      if traits.fastTypes.contains(.uint4), StoreWeightsInFourBits.takes(graph[id], block: block, graph) {
        choices.append(.int4)
      }
      guard choices.count > 1 else { continue }
      layers.append(
        Layer(name: graph[id].name, sources: graph[id].sources, choices: choices, rounded: int8[id]))
    }
    return layers
  }

  /// The precisions with these choices; layers without one keep single precision.
  package func precisions(_ choice: [String: Precision]) -> LayerPrecisions {
    LayerPrecisions(
      usual: .fp32, named: choice.filter { $0.value != .fp32 }, table: table,
      quantization: builder.configuration.quantization, rounded: rounded,
      int4Group: builder.configuration.int4Group)
  }

  /// Builds an engine, at full effort or just to look at its results.
  package func engine(_ precisions: LayerPrecisions, isDraft: Bool = false) throws(ApusError) -> Engine {
    var builder = builder
    if isDraft {
      builder.configuration.level = min(1, builder.configuration.level)
      if let cache = builder.cache { drafts.merge(cache) }
      builder.cache = drafts
    }
    return try builder.build(graph, precisions, backend, Clock.seconds)
  }

  /// How much an engine's results differ from single precision.
  func error(of engine: Engine) throws(ApusError) -> OutputError {
    let results = try Self.results(engine, samples.batches)
    var error = Self.difference(results, exact)
    if let scores {
      let more = try Self.results(engine, calibrated.map(\.inputs))
      error.classes = Self.scores(results + more, engine.outputs).map { scores.compare($0) }
    }
    return error
  }

  /// The energy of an engine's error on samples that were calibrated with.
  package func calibratedNoise(of engine: Engine) throws(ApusError) -> Double {
    let compared = calibrated.prefix(Self.comparedLimit)
    let results = try Self.results(engine, compared.map(\.inputs))
    return Self.difference(results, compared.map(\.exact)).noise
  }

  /// The energies of results and of how they differ from others.
  static func difference(_ results: [[Tensor]], _ exact: [[Tensor]]) -> OutputError {
    var error = OutputError()
    for (ours, wanted) in zip(results, exact) {
      for (a, b) in zip(ours, wanted) where b.dataType.isFloat && a.count == b.count {
        for (x, y) in zip(a.doubles(), b.doubles()) {
          error.noise += (x - y) * (x - y)
          error.signal += y * y
        }
      }
    }
    return error
  }

  /// The median time of engines in seconds, measured in turns of some runs each, so that every engine finds
  /// its own weights in cache.
  func times(_ engines: [Engine], seconds: Double = 0.6) throws(ApusError) -> [Double] {
    var contexts: [ExecutionContext] = []
    for engine in engines {
      let context = try engine.makeContext()
      for (name, tensor) in try engine.sampleInputs(builder.configuration) {
        try context.bindInput(name, tensor)
      }
      try context.execute()
      contexts.append(context)
    }
    var times = [[Double]](repeating: [], count: engines.count)
    let end = Clock.seconds + seconds * Double(engines.count)
    while Clock.seconds < end || times[0].count < 5 {
      for index in contexts.indices {
        try contexts[index].execute()
        let turn = Clock.seconds + seconds / 20
        repeat {
          let start = Clock.seconds
          try contexts[index].execute()
          times[index].append(Clock.seconds - start)
        } while Clock.seconds < turn
      }
    }
    return times.map { $0.sorted()[$0.count / 2] }
  }

  /// The time of each layer with these precisions in seconds, by name, where no layers are joined: the least of
  /// several runs of its kernels. A kernel belongs to the layer it begins with; one that begins with none (pooling,
  /// rounding an input) moves what the layer that reads it takes, so it is this layer's.
  func layerTimes(_ precisions: LayerPrecisions) throws(ApusError) -> [String: Double] {
    var builder = builder
    builder.joinsChains = false
    let engine = try builder.build(graph, precisions, backend, Clock.seconds)
    let inputs = try engine.sampleInputs(builder.configuration)
    let context = try engine.makeContext()
    let layerOf = try layerOfNodes()
    var best: [Double] = []
    var owners: [String?] = []
    for _ in 0..<7 {
      let kernels = try context.profile(inputs)
      if owners.isEmpty { owners = kernels.map { $0.sources.first.flatMap { Self.owner($0, layerOf) } } }
      let seconds = kernels.map(\.seconds)
      best = best.isEmpty ? seconds : zip(best, seconds).map { min($0, $1) }
    }
    var result: [String: Double] = [:]
    for (owner, seconds) in zip(owners, best) { if let owner { result[owner, default: 0] += seconds } }
    return result
  }

  /// The layer that a kernel's first node belongs to. Nodes that rounding adds are called after the value they round:
  /// `input.quantize`.
  private static func owner(_ node: String, _ layerOf: [String: String]) -> String? {
    layerOf[node] ?? node.lastIndex(of: ".").flatMap { layerOf[String(node[..<$0])] }
  }

  /// Layers by the names of their nodes, of nodes whose results only they read, and of the values they round.
  private func layerOfNodes() throws(ApusError) -> [String: String] {
    var layerOf: [String: String] = [:]
    for layer in layers {
      if let operand = layer.rounded?.operand, layerOf[operand] == nil { layerOf[operand] = layer.name }
    }
    for layer in layers { for source in layer.sources + [layer.name] { layerOf[source] = layer.name } }
    for id in try graph.topologicalOrder().reversed() {
      let node = graph[id]
      let readers = Set(node.outputs.flatMap { graph[$0].consumers }.map { layerOf[graph[$0].name] })
      guard layerOf[node.name] == nil, readers.count == 1, let reader = readers.first ?? nil else { continue }
      for source in node.sources + [node.name] where layerOf[source] == nil { layerOf[source] = reader }
    }
    return layerOf
  }

  /// The results of an engine, batch by batch.
  static func results(_ engine: Engine, _ batches: [[String: Tensor]]) throws(ApusError)
    -> [[Tensor]]
  {
    let context = try engine.makeContext()
    var results: [[Tensor]] = []
    for batch in batches {
      let named = try context.run(batch)
      results.append(engine.outputs.compactMap { named[$0.name] })
    }
    return results
  }

  /// A row of scores for each sample; nil for what is no classifier.
  private static func scores(_ results: [[Tensor]], _ outputs: [Engine.Binding]) -> [[Double]]? {
    var rows: [[Double]] = []
    for result in results {
      guard outputs.count == 1, result.count == 1, result[0].dataType.isFloat,
        ClassError.isClassifier(shape: result[0].shape)
      else { return nil }
      let values = result[0].doubles()
      let classes = result[0].shape[1]
      for start in stride(from: 0, to: values.count, by: classes) {
        rows.append(Array(values[start..<start + classes]))
      }
    }
    return rows
  }
}
