// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph

/// Finds the fastest precision of each layer with which the results stay within an accuracy budget.
///
/// Every layer begins at the precision that measures fastest for it. If the engine's error is above the
/// budget, the choice that takes least time with an error within some limit is found from the times and errors
/// measured of each layer (`PrecisionKnapsack`), and the limit by building and measuring engines of such choices.
struct PrecisionSearch {
  typealias Precision = BuilderConfiguration.Precision

  let study: PrecisionStudy
  let budget: Double
  let metric: AccuracyMetric
  let progress: ProgressHandler?

  /// What was chosen and why.
  struct Outcome {
    var precisions: LayerPrecisions
    var records: [LayerRecord]
    var notes: [String]
  }

  var units: [PrecisionUnit] { PrecisionUnit.units(of: study.layers) }

  /// The error energy of each layer when it alone is rounded, for precisions that round much.
  typealias Errors = [Precision: [String: Double]]

  /// Measured of an engine of one precision.
  private struct Uniform {
    let precision: Precision
    let choice: [String: Precision]
    let times: [String: Double]
    let error: OutputError
    let engine: Engine
  }

  /// A precision for each layer, and what the engine's error is.
  struct Mix {
    let choice: [String: Precision]
    let error: OutputError
  }

  /// The times of layers in engines: of one precision, and of mixtures within units.
  typealias Times = [(choice: [String: Precision], seconds: [String: Double])]

  /// Searches.
  ///
  /// - Throws: as `Builder.build`; `cancelled`.
  func run() throws(ApusError) -> Outcome {
    let start = Clock.seconds
    var uniform: [Uniform] = []
    for precision in [Precision.fp32, .fp16, .bf16, .int8, .int4]
    where study.layers.contains(where: { $0.choices.contains(precision) }) {
      uniform.append(try measure(precision))
      try report(uniform.count, 0, start)
    }
    var choice: [String: Precision] = [:]
    for unit in units { choice.merge(fastest(unit, uniform)) { $1 } }
    var error = try verified(choice)
    var errors = Errors()
    if error.value(metric) > budget {
      errors = try layerErrors(choice, start)
      for candidate in uniform where [.bf16, .fp16].contains(candidate.precision) {
        errors[candidate.precision] = try floatErrors(candidate, beside: error.noise, start)
      }
      if try improveRanges(&errors[.int8, default: [:]], start) > 0 {
        uniform = try uniform.map { old throws(ApusError) in
          old.precision == .int8 ? try measure(.int8) : old
        }
        error = try verified(choice)
      }
    }
    var mixes = [Mix(choice: choice, error: error)]
    if error.value(metric) > budget {
      mixes = try mixesWithin(budget, fastest: mixes[0], options(errors, try measuredTimes(uniform)), start)
    }
    return try settled(mixes, errors, uniform)
  }

  private func measure(_ precision: Precision) throws(ApusError) -> Uniform {
    var choice: [String: Precision] = [:]
    for layer in study.layers where layer.choices.contains(precision) { choice[layer.name] = precision }
    let precisions = study.precisions(choice)
    let engine = try study.engine(precisions)
    return Uniform(
      precision: precision, choice: choice, times: try study.layerTimes(precisions),
      error: try study.error(of: engine), engine: engine)
  }

  /// The precision in which layers measure fastest; a narrower one must be so by more than noise.
  private func fastest(_ unit: PrecisionUnit, _ uniform: [Uniform]) -> [String: Precision] {
    var best = (choice: unit.uniform(.fp32), seconds: Double.infinity)
    for candidate in uniform {
      guard let option = unit.option((candidate.choice, candidate.times)) else { continue }
      if option.seconds < best.seconds * 0.97 { best = (option.choice, option.seconds) }
    }
    return best.choice
  }

  /// The times of layers in each of their precisions, and of units that mix two of them: one precision does not say
  /// what it costs to store a tensor twice.
  private func measuredTimes(_ uniform: [Uniform]) throws(ApusError) -> Times {
    var times: Times = uniform.map { ($0.choice, $0.times) }
    let wide: Precision = uniform.contains { $0.precision == .bf16 } ? .bf16 : .fp32
    for narrowFirst in [true, false] {
      var choice: [String: Precision] = [:]
      for unit in units {
        guard let mixture = unit.mixed(narrow: .int8, wide: wide, narrowFirst: narrowFirst) else { continue }
        choice.merge(mixture) { $1 }
      }
      guard !choice.isEmpty else { break }
      for layer in study.layers where choice[layer.name] == nil && layer.choices.contains(.int8) {
        choice[layer.name] = .int8
      }
      times.append((choice, try study.layerTimes(study.precisions(choice))))
    }
    return times
  }

  /// The error of an engine built for a choice.
  func verified(_ choice: [String: Precision]) throws(ApusError) -> OutputError {
    try study.error(of: try study.engine(study.precisions(choice), isDraft: true))
  }

  /// The error energy of each layer that rounds to integers, measured with it alone rounded: in its own precision,
  /// and in the wider ones it may be raised to. More than two layers that read the same tensor share the error by
  /// their number, and in long networks groups of neighbours do.
  private func layerErrors(_ choice: [String: Precision], _ start: Double) throws(ApusError) -> Errors {
    var errors = Errors()
    for (precision, narrower) in [(Precision.int8, [Precision.int8, .int4]), (.int4, [.int4])] {
      let narrow = units.filter { unit in
        unit.choices.contains(precision) && choice[unit.layers[0].name].map(narrower.contains) ?? false
      }.flatMap { unit in unit.layers.count == 2 ? unit.layers.map { [$0] } : [unit.layers] }
      let size = (narrow.count + Self.groupLimit - 1) / Self.groupLimit
      for first in stride(from: 0, to: narrow.count, by: max(1, size)) {
        let group = narrow[first..<min(narrow.count, first + size)].flatMap { $0 }
        let alone = Dictionary(uniqueKeysWithValues: group.map { ($0.name, precision) })
        let noise = try verified(alone).noise
        for layer in group { errors[precision, default: [:]][layer.name] = noise / Double(group.count) }
        try report(first, narrow.count, start)
      }
    }
    return errors
  }

  private static let groupLimit = 64

  /// The error energy of each layer in a float type that rounds.
  ///
  /// Most layers add next to nothing, and one may have nearly all of it: halves are measured until they have little
  /// beside a noise, which their layers may share alike, or are one layer.
  private func floatErrors(_ uniform: Uniform, beside noise: Double, _ start: Double) throws(ApusError)
    -> [String: Double]
  {
    let units = units.filter { $0.choices.contains(uniform.precision) }
    var errors: [String: Double] = [:]
    var waiting = [(range: units.indices, noise: uniform.error.noise)]
    while let (range, own) = waiting.popLast() {
      let layers = units[range].flatMap(\.layers)
      guard range.count > 1, own > Self.little * noise else {
        for layer in layers { errors[layer.name] = own / Double(layers.count) }
        continue
      }
      let middle = (range.lowerBound + range.upperBound) / 2
      for half in [range.lowerBound..<middle, middle..<range.upperBound] {
        let alone = units[half].flatMap(\.layers).map { ($0.name, uniform.precision) }
        let error = try verified(Dictionary(uniqueKeysWithValues: alone))
        waiting.append((half, error.noise))
        try report(errors.count, study.layers.count, start)
      }
    }
    return errors
  }

  private static let little = 0.01

  private func improveRanges(_ errors: inout [String: Double], _ start: Double) throws(ApusError) -> Int {
    try RangeSearch(
      study: study, report: { (done, total) throws(ApusError) in try report(done, total, start) }
    ).run(&errors)
  }

  /// The fastest mix, or one precision for all layers where that keeps the budget and measures no slower.
  private func settled(_ mixes: [Mix], _ errors: Errors, _ uniform: [Uniform]) throws(ApusError) -> Outcome {
    let engines = try mixes.map { (mix) throws(ApusError) in try study.engine(study.precisions(mix.choice)) }
    let rivals = uniform.filter { $0.precision == .fp32 || $0.error.value(metric) <= budget }
    let all = try study.times(engines + rivals.map(\.engine))
    let times = all.dropFirst(mixes.count - 1)
    let best = mixes.indices.min { all[$0] < all[$1] } ?? 0
    var final = mixes[best].choice
    var (error, seconds) = (mixes[best].error, all[best])
    var notes: [String] = []
    for (rival, time) in zip(rivals, times.dropFirst()) where time < seconds {
      final = rival.choice
      (error, seconds) = (rival.error, time)
      notes = ["\(rival.precision.rawValue) for all layers measures faster than any mix within the budget"]
    }
    let single = zip(rivals, times.dropFirst()).first { $0.0.precision == .fp32 }?.1 ?? seconds
    notes.insert(summary(error, seconds, single), at: 0)
    return Outcome(
      precisions: study.precisions(final), records: records(final, errors, uniform, error),
      notes: notes)
  }

  private func summary(_ error: OutputError, _ seconds: Double, _ single: Double) -> String {
    var text = "budget \(budget) (\(metric.rawValue)): "
    if metric == .top1, let classes = error.classes {
      text += "expected drop \(rounded(classes.expectedDrop)) points, \(rounded(classes.expectedChanges)) % of answers changed"
      text += ", \(classes.agreeing) of \(classes.margins.count) samples keep their class"
      if let hits = classes.hits { text += ", \(hits.rounded) right, \(hits.exact) in fp32" }
    } else {
      text += "error energy \(rounded(100 * error.relativeNoise)) %"
    }
    return text + "; \(rounded(seconds * 1e3)) ms, \(rounded(single * 1e3)) ms in fp32"
  }

  private func rounded(_ value: Double) -> Double { (value * 1e4).rounded() / 1e4 }

  private func records(
    _ choice: [String: Precision], _ errors: Errors, _ uniform: [Uniform],
    _ error: OutputError
  ) -> [LayerRecord] {
    var quickest: [String: Precision] = [:]
    for unit in units { quickest.merge(fastest(unit, uniform)) { $1 } }
    return study.layers.map { layer in
      let chosen = choice[layer.name] ?? .fp32
      var record = LayerRecord(name: layer.name, precision: chosen.rawValue)
      for candidate in uniform where layer.choices.contains(candidate.precision) {
        record.seconds[candidate.precision.rawValue] = candidate.times[layer.name]
      }
      for precision in layer.choices where error.signal > 0 && !errors.isEmpty {
        let own = self.error(layer.name, precision, errors)
        if let own { record.errors[precision.rawValue] = own / error.signal }
      }
      let quickest = quickest[layer.name] ?? .fp32
      record.reason =
        chosen == quickest
        ? "measures fastest" : "wider than \(quickest.rawValue), which measures fastest, for the budget"
      return record
    }
  }

  func report(_ done: Int, _ total: Int, _ start: Double) throws(ApusError) {
    guard let progress else { return }
    let goesOn = progress(
      BuildProgress(
        phase: "precision", done: done, total: max(done, total), timed: 0,
        elapsedSeconds: Clock.seconds - start, remainingSeconds: nil))
    if !goesOn { throw ApusError(.cancelled, "choosing precisions was cancelled") }
  }
}
