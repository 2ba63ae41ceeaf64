// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Finds which layers of an engine are to blame for how its results differ from single precision.
///
/// Each layer is given its precision alone, all others single precision, in a real engine: what then is
/// wrong with the results is its own doing.
public struct Blame: Sendable {
  /// What one layer does to the results.
  public struct Layer: Sendable {
    /// The node's name, and its precision in the engine.
    public let name: String
    public let precision: String
    /// The energy of the error it makes alone, as a share of the results' energy.
    public let error: Double
    /// Its part of the sum over all layers.
    public let share: Double
  }

  /// What is odd about the values of a tensor that is rounded to bytes.
  public struct Watched: Sendable {
    public let name: String
    public let count: Int
    public let nanCount: Int
    public let infiniteCount: Int
    /// Finite numbers outside of the range that bytes stand for.
    public let saturatedCount: Int
  }

  /// The layers that are not in single precision, the worst first.
  public let layers: [Layer]
  /// The tensors with what is odd about them.
  public let tensors: [Watched]
  /// The energy of the engine's error as a share of the results' energy.
  public let error: Double
  /// The smallest set of layers with which in single precision the wanted error is kept, and the error
  /// that then was measured; nil when none was wanted.
  public let raised: (layers: [String], error: Double)?

  /// Looks for the layers to blame. A network that came rounded, with `QuantizeLinear` and `DequantizeLinear`, is
  /// compared with itself without the rounding of its activations.
  ///
  /// - Parameters:
  ///   - network: As it was imported.
  ///   - configuration: Its precision and calibration, as for a build.
  ///   - engine: An engine that was built of the network; its precisions and ranges are then those
  ///     that are looked at, and the configuration's do not matter.
  ///   - batches: Inputs.
  ///   - wantedError: The share of energy that the error may have.
  /// - Throws: `invalid-argument` when the engine is of another network or nothing is rounded; as
  ///   `Builder.build`.
  public init(
    of network: Graph, _ configuration: BuilderConfiguration, engine: Engine? = nil,
    batches: [[String: Tensor]], wantedError: Double? = nil, progress: ProgressHandler? = nil
  ) throws(ApusError) {
    guard !batches.isEmpty else {
      throw ApusError(.invalidArgument, "there are no inputs to look at")
    }
    for batch in batches { try CalibrationBatches.check(batch) }
    var builder = Builder(configuration, progress: progress)
    var precisions: LayerPrecisions
    if let engine {
      precisions = try Self.precisions(of: engine, network)
      builder.configuration.int4Group = precisions.int4Group
    } else {
      precisions = try builder.precisions(for: network, try builder.backend().traits).precisions
    }
    let explicit = try ExplicitRounding(network)
    if precisions.table == nil, !explicit.layers.isEmpty {
      self = try Self.own(explicit, builder, batches, wantedError, progress)
      return
    }
    if engine != nil {
      try Self.addMoments(to: &precisions, network, configuration, batches)
    }
    let table = precisions.table
      ?? CalibrationTable(entries: [:], calibrator: .minmax, modelHash: 0, sampleCount: 0)
    let study = try PrecisionStudy(network, builder, table, HeldOutSamples(batches: batches))
    let engine = try study.engine(precisions, isDraft: true)
    let total = try study.error(of: engine)
    let narrow = study.layers.filter { layer in
      let precision = precisions.precision(of: layer.name)
      return precision != .fp32 && layer.choices.contains(precision)
    }
    guard !narrow.isEmpty else {
      throw ApusError(
        .invalidArgument, "every layer is in single precision: there is nothing to blame",
        hint: "give an engine of another precision, or --precision and calibration data")
    }
    var noise: [Double] = []
    for (index, layer) in narrow.enumerated() {
      var alone = precisions
      alone.usual = .fp32
      alone.named = [layer.name: precisions.precision(of: layer.name)]
      noise.append(try study.error(of: try study.engine(alone, isDraft: true)).noise)
      try Self.report(progress, index + 1, narrow.count)
    }
    let ranked = Self.ranked(
      narrow.map { ($0.name, precisions.precision(of: $0.name).rawValue) }, noise, total)
    layers = ranked
    error = total.relativeNoise
    tensors = try precisions.table.map { table throws(ApusError) in
      try Saturation.count(network, configuration, table, batches)
    } ?? []
    raised = try wantedError.map { wanted throws(ApusError) in
      try Self.raise(ranked.map(\.name), until: wanted, total) { (raised) throws(ApusError) in
        var candidate = precisions
        for name in raised { candidate.named[name] = .fp32 }
        return try study.error(of: try study.engine(candidate, isDraft: true))
      }
    }
  }

  init(
    layers: [Layer], tensors: [Watched], error: Double, raised: (layers: [String], error: Double)?
  ) {
    self.layers = layers
    self.tensors = tensors
    self.error = error
    self.raised = raised
  }

  /// An engine does not keep what its weights were seen to multiply: the inputs show it again.
  private static func addMoments(
    to precisions: inout LayerPrecisions, _ network: Graph, _ configuration: BuilderConfiguration,
    _ batches: [[String: Tensor]]
  ) throws(ApusError) {
    guard let table = precisions.table, precisions.quantization.correctsRounding, table.moments.isEmpty
    else { return }
    var configuration = configuration
    configuration.quantization = precisions.quantization
    configuration.quantization.scalesChannels = false
    let calibration = try Calibration(network, configuration, calibrator: table.calibrator)
    if !table.scaling.isEmpty { try calibration.scale(table.scaling) }
    precisions.table?.moments = try calibration.moments(batches)
  }

  static func report(_ progress: ProgressHandler?, _ done: Int, _ total: Int)
    throws(ApusError)
  {
    guard let progress else { return }
    let goesOn = progress(
      BuildProgress(
        phase: "blame", done: done, total: total, timed: 0, elapsedSeconds: 0, remainingSeconds: nil))
    if !goesOn { throw ApusError(.cancelled, "the search was cancelled") }
  }

  /// The precisions that an engine was built with.
  private static func precisions(of engine: Engine, _ network: Graph) throws(ApusError)
    -> LayerPrecisions
  {
    let report = engine.report
    if let table = report.calibration, table.modelHash != (try ModelHash.of(network)) {
      throw ApusError(.invalidArgument, "the engine was built of another model")
    }
    var result = LayerPrecisions(
      usual: BuilderConfiguration.Precision(rawValue: report.precision) ?? .fp32,
      table: report.calibration, quantization: report.quantization)
    for layer in report.layers {
      if let precision = BuilderConfiguration.Precision(rawValue: layer.precision) {
        result.named[layer.name] = precision
      }
    }
    if result.usual == .auto { result.usual = .fp32 }
    let blocks = engine.graph.nodes.lazy.compactMap { id -> Int? in
      let op = engine.graph[id].op
      return (((op as? Fused)?.anchor ?? op) as? BlockQuantizedMatMul)?.block
    }
    result.int4Group = blocks.first ?? result.int4Group
    return result
  }

  /// Layers by the error energy that each makes alone, the worst first.
  static func ranked(
    _ layers: [(name: String, precision: String)], _ noise: [Double], _ total: OutputError
  ) -> [Layer] {
    let sum = noise.reduce(0, +)
    return zip(layers, noise).map { layer, noise in
      Layer(
        name: layer.name, precision: layer.precision,
        error: total.signal > 0 ? noise / total.signal : noise, share: sum > 0 ? noise / sum : 0)
    }.sorted { $0.error > $1.error }
  }

  /// The worst layers, as few as will do: the beginning of the list is searched by halves.
  static func raise(
    _ names: [String], until wanted: Double, _ total: OutputError,
    _ error: (_ raised: ArraySlice<String>) throws(ApusError) -> OutputError
  ) throws(ApusError) -> (layers: [String], error: Double) {
    if total.relativeNoise <= wanted { return ([], total.relativeNoise) }
    var (low, high) = (0, names.count)
    var best = try error(names[...]).relativeNoise
    while high - low > 1 {
      let middle = (low + high) / 2
      let found = try error(names.prefix(middle)).relativeNoise
      if found <= wanted { (high, best) = (middle, found) } else { low = middle }
    }
    return (Array(names.prefix(high)), best)
  }

  /// The findings as JSON.
  public var json: JSON {
    .object([
      ("error", .number(error)),
      (
        "layers",
        .array(
          layers.map {
            .object([
              ("name", .string($0.name)), ("precision", .string($0.precision)),
              ("error", .number($0.error)), ("share", .number($0.share)),
            ])
          })
      ),
      (
        "tensors",
        .array(
          tensors.map {
            .object([
              ("name", .string($0.name)), ("count", .int($0.count)), ("nan", .int($0.nanCount)),
              ("infinite", .int($0.infiniteCount)), ("saturated", .int($0.saturatedCount)),
            ])
          })
      ),
      (
        "raise",
        raised.map {
          .object([
            ("layers", .array($0.layers.map { .string($0) })), ("error", .number($0.error)),
          ])
        } ?? .null
      ),
    ])
  }
}
