// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph

/// Finds the fastest precision of each layer with which the results stay within an accuracy budget.
///
/// Every layer begins at the precision that measures fastest for it. If the engine's error is above the
/// budget, layers are put into the order of how much error a wider precision takes away for the time it
/// costs, and the shortest beginning of that order is found, by building and measuring, with which the
/// engine keeps the budget.
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

  /// A step towards single precision.
  private struct Raise {
    let layer: String
    let precision: Precision
    /// Error energy taken away, and seconds added.
    let gain: Double
    let cost: Double
  }

  /// Measured of an engine of one precision.
  private struct Uniform {
    let precision: Precision
    let times: [String: Double]
    let error: OutputError
    let engine: Engine
  }

  /// Searches.
  ///
  /// - Throws: as `Builder.build`; `cancelled`.
  func run() throws(ApusError) -> Outcome {
    let start = Clock.seconds
    var uniform: [Uniform] = []
    for precision in [Precision.fp32, .fp16, .bf16, .int8]
    where study.layers.contains(where: { $0.choices.contains(precision) }) {
      uniform.append(try measure(precision))
      try report(uniform.count, 0, start)
    }
    var choice: [String: Precision] = [:]
    for layer in study.layers { choice[layer.name] = fastest(layer, uniform) }
    var outcome = try verified(choice)
    var errors: [String: Double] = [:]
    if outcome.error.value(metric) > budget {
      errors = try layerErrors(choice, start)
      let raises = raises(choice, errors, uniform)
      (choice, outcome) = try shortest(raises, choice, start)
    }
    return try settled(choice, outcome, errors, uniform)
  }

  private func measure(_ precision: Precision) throws(ApusError) -> Uniform {
    var choice: [String: Precision] = [:]
    for layer in study.layers where layer.choices.contains(precision) { choice[layer.name] = precision }
    let engine = try study.engine(study.precisions(choice))
    return Uniform(
      precision: precision, times: try study.layerTimes(of: engine),
      error: try study.error(of: engine), engine: engine)
  }

  /// The precision in which a layer measures fastest; a narrower one must be so by more than noise.
  private func fastest(_ layer: PrecisionStudy.Layer, _ uniform: [Uniform]) -> Precision {
    var best = (precision: Precision.fp32, seconds: Double.infinity)
    for candidate in uniform where layer.choices.contains(candidate.precision) {
      guard let seconds = candidate.times[layer.name] else { continue }
      if seconds < best.seconds * 0.97 { best = (candidate.precision, seconds) }
    }
    return best.precision
  }

  private func verified(_ choice: [String: Precision]) throws(ApusError) -> (
    engine: Engine, error: OutputError
  ) {
    let engine = try study.engine(study.precisions(choice), isDraft: true)
    return (engine, try study.error(of: engine))
  }

  /// The error energy of each layer that is not in single precision, measured with it alone rounded.
  /// Long networks are measured in groups of neighbours, which share the error by their number.
  private func layerErrors(_ choice: [String: Precision], _ start: Double) throws(ApusError)
    -> [String: Double]
  {
    let narrow = study.layers.map(\.name).filter { choice[$0] == .int8 }
    let size = (narrow.count + Self.groupLimit - 1) / Self.groupLimit
    var errors: [String: Double] = [:]
    for first in stride(from: 0, to: narrow.count, by: max(1, size)) {
      let group = narrow[first..<min(narrow.count, first + size)]
      let alone = Dictionary(uniqueKeysWithValues: group.map { ($0, Precision.int8) })
      let noise = try verified(alone).error.noise
      for layer in group { errors[layer] = noise / Double(group.count) }
      try report(first, narrow.count, start)
    }
    return errors
  }

  private static let groupLimit = 64

  /// All steps towards single precision, the most worthwhile first; a layer's own in order.
  private func raises(
    _ choice: [String: Precision], _ errors: [String: Double], _ uniform: [Uniform]
  ) -> [Raise] {
    func seconds(_ layer: String, _ precision: Precision) -> Double {
      uniform.first { $0.precision == precision }?.times[layer] ?? 0
    }
    // What the floats add is so little that all layers may share it alike.
    func share(_ precision: Precision) -> Double {
      let noise = uniform.first { $0.precision == precision }?.error.noise ?? 0
      return precision == .fp32 ? 0 : noise / Double(max(1, study.layers.count))
    }
    var raises: [Raise] = []
    for layer in study.layers {
      guard var now = choice[layer.name], now != .fp32 else { continue }
      let isOnPath: (Precision) -> Bool = { $0 == .fp32 || layer.choices.contains($0) }
      for next in [Precision.bf16, .fp16, .fp32]
      where Self.width(next) > Self.width(now) && isOnPath(next) {
        let before = now == .int8 ? errors[layer.name] ?? 0 : share(now)
        let gain = before - share(next)
        // In time order a step may even win; it then comes first.
        let cost = max(1e-9, seconds(layer.name, next) - seconds(layer.name, now))
        raises.append(Raise(layer: layer.name, precision: next, gain: gain, cost: cost))
        now = next
      }
    }
    return raises.sorted { $0.gain / $0.cost > $1.gain / $1.cost }
  }

  /// The shortest beginning of the steps with which the budget is kept.
  private func shortest(
    _ raises: [Raise], _ choice: [String: Precision], _ start: Double
  ) throws(ApusError) -> ([String: Precision], (engine: Engine, error: OutputError)) {
    var (low, high) = (0, raises.count)
    var best = try verified(Self.raised(choice, by: raises[...]))
    while high - low > 1 {
      let middle = (low + high) / 2
      let candidate = try verified(Self.raised(choice, by: raises[..<middle]))
      if candidate.error.value(metric) <= budget {
        (high, best) = (middle, candidate)
      } else {
        low = middle
      }
      try report(low, high, start)
    }
    // What the last steps took away may be more than was needed: the dearest are tried without.
    var taken = Array(raises[..<high])
    let dearest = taken.indices.sorted { taken[$0].cost > taken[$1].cost }.prefix(Self.returnLimit)
    var returned: Set<Int> = []
    for index in dearest {
      let rest = taken.indices.filter { $0 != index && !returned.contains($0) }.map { taken[$0] }
      let candidate = try verified(Self.raised(choice, by: rest[...]))
      guard candidate.error.value(metric) <= budget else { continue }
      returned.insert(index)
      best = candidate
    }
    taken = taken.indices.filter { !returned.contains($0) }.map { taken[$0] }
    return (Self.raised(choice, by: taken[...]), best)
  }

  /// How many steps are tried to be taken back.
  private static let returnLimit = 12

  /// A choice after steps towards single precision.
  private static func raised(_ choice: [String: Precision], by raises: ArraySlice<Raise>)
    -> [String: Precision]
  {
    var result = choice
    for raise in raises where width(raise.precision) > width(result[raise.layer]) {
      result[raise.layer] = raise.precision
    }
    return result
  }

  private static func width(_ precision: Precision?) -> Int {
    switch precision {
    case .int8: 0
    case .bf16: 1
    case .fp16: 2
    default: 3
    }
  }

  /// The mix, or one precision for all layers where that keeps the budget and measures no slower.
  private func settled(
    _ choice: [String: Precision], _ outcome: (engine: Engine, error: OutputError),
    _ errors: [String: Double], _ uniform: [Uniform]
  ) throws(ApusError) -> Outcome {
    let mixed = try study.engine(study.precisions(choice))
    let rivals = uniform.filter { $0.precision == .fp32 || $0.error.value(metric) <= budget }
    let times = try study.times([mixed] + rivals.map(\.engine))
    var final = choice
    var (error, seconds) = (outcome.error, times[0])
    var notes: [String] = []
    for (rival, time) in zip(rivals, times.dropFirst()) where time < seconds {
      final = [:]
      for layer in study.layers where layer.choices.contains(rival.precision) {
        final[layer.name] = rival.precision
      }
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
      text += ", \(classes.agreeing) of \(classes.margins.count) samples set aside keep their class"
      if let hits = classes.hits { text += ", \(hits.rounded) right, \(hits.exact) in fp32" }
    } else {
      text += "error energy \(rounded(100 * error.relativeNoise)) %"
    }
    return text + "; \(rounded(seconds * 1e3)) ms, \(rounded(single * 1e3)) ms in fp32"
  }

  private func rounded(_ value: Double) -> Double { (value * 1e4).rounded() / 1e4 }

  private func records(
    _ choice: [String: Precision], _ errors: [String: Double], _ uniform: [Uniform],
    _ error: OutputError
  ) -> [LayerRecord] {
    study.layers.map { layer in
      let chosen = choice[layer.name] ?? .fp32
      var record = LayerRecord(name: layer.name, precision: chosen.rawValue)
      for candidate in uniform where layer.choices.contains(candidate.precision) {
        record.seconds[candidate.precision.rawValue] = candidate.times[layer.name]
      }
      if let own = errors[layer.name], error.signal > 0 { record.error = own / error.signal }
      let quickest = fastest(layer, uniform)
      record.reason =
        chosen == quickest
        ? "measures fastest" : "wider than \(quickest.rawValue), which measures fastest, for the budget"
      return record
    }
  }

  private func report(_ done: Int, _ total: Int, _ start: Double) throws(ApusError) {
    guard let progress else { return }
    let goesOn = progress(
      BuildProgress(
        phase: "precision", done: done, total: max(done, total), timed: 0,
        elapsedSeconds: Clock.seconds - start, remainingSeconds: nil))
    if !goesOn { throw ApusError(.cancelled, "choosing precisions was cancelled") }
  }
}
