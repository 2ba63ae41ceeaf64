// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

extension Blame {
  /// Which layers of a network that came rounded are to blame: each is built with the rounding of its own operands
  /// alone.
  ///
  /// - Throws: as `Builder.build`; `cancelled`.
  static func own(
    _ explicit: ExplicitRounding, _ builder: Builder, _ batches: [[String: Tensor]],
    _ wantedError: Double?, _ progress: ProgressHandler?
  ) throws(ApusError) -> Blame {
    let runner = try Runner(builder, explicit, batches)
    let total = try runner.error(rounding: explicit.layers)
    var noise: [Double] = []
    for (index, layer) in explicit.layers.enumerated() {
      noise.append(try runner.error(rounding: [layer]).noise)
      try report(progress, index + 1, explicit.layers.count)
    }
    let ranked = ranked(explicit.layers.map { ($0.name, "int8") }, noise, total)
    let raised = try wantedError.map { wanted throws(ApusError) in
      try raise(ranked.map(\.name), until: wanted, total) { (raised) throws(ApusError) in
        try runner.error(rounding: explicit.layers.filter { !raised.contains($0.name) })
      }
    }
    return Blame(
      layers: ranked, tensors: try runner.watched(), error: total.relativeNoise, raised: raised)
  }

  /// Builds forms of the network, quickly and with one timing cache, and compares their results with those of
  /// the form without rounding.
  private struct Runner {
    private let builder: Builder
    private let backend: any Backend
    private let explicit: ExplicitRounding
    private let batches: [[String: Tensor]]
    private let exact: [[Tensor]]

    init(_ builder: Builder, _ explicit: ExplicitRounding, _ batches: [[String: Tensor]])
      throws(ApusError)
    {
      var builder = builder
      builder.cache = try builder.timingCache()
      builder.progress = nil
      builder.configuration.level = min(1, builder.configuration.level)
      self.builder = builder
      self.explicit = explicit
      self.batches = batches
      backend = try builder.backend()
      let plain = try builder.build(
        explicit.network(rounding: []), LayerPrecisions(), backend, Clock.seconds)
      exact = try PrecisionStudy.results(plain, batches)
    }

    func error(rounding layers: [ExplicitRounding.Layer]) throws(ApusError) -> OutputError {
      let engine = try builder.build(
        explicit.network(rounding: layers), LayerPrecisions(), backend, Clock.seconds)
      return PrecisionStudy.difference(try PrecisionStudy.results(engine, batches), exact)
    }

    /// What is odd about the numbers that are rounded.
    func watched() throws(ApusError) -> [Watched] {
      let (network, names) = explicit.watched()
      let context = try builder.build(network, LayerPrecisions(), backend, Clock.seconds).makeContext()
      var counts = explicit.tensors.map { Saturation.Counter(name: $0.name, range: $0.range) }
      for batch in batches {
        let results = try context.run(batch)
        for (index, name) in names.enumerated() { if let tensor = results[name] { counts[index].add(tensor) } }
      }
      return counts.map(\.found)
    }
  }
}
