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

  /// Layers that take one precision: those that read the same tensor, which is stored once then, and whose
  /// products may be one.
  private struct Unit {
    var layers: [PrecisionStudy.Layer]

    /// The precisions that there are for all of them.
    var choices: [Precision] {
      layers[0].choices.filter { choice in layers.allSatisfy { $0.choices.contains(choice) } }
    }

    /// Their time in an engine of one precision.
    func seconds(_ uniform: Uniform) -> Double? {
      var sum = 0.0
      for layer in layers {
        guard let time = uniform.times[layer.name] else { return nil }
        sum += time
      }
      return sum
    }
  }

  private var units: [Unit] {
    var units: [Unit] = []
    var known: [String: Int] = [:]
    for layer in study.layers {
      if let operand = layer.rounded?.operand, let index = known[operand] {
        units[index].layers.append(layer)
      } else {
        if let operand = layer.rounded?.operand { known[operand] = units.count }
        units.append(Unit(layers: [layer]))
      }
    }
    return units
  }

  private func set(_ choice: inout [String: Precision], _ unit: Unit, _ precision: Precision) {
    for layer in unit.layers { choice[layer.name] = precision }
  }

  /// The error energy of each layer when it alone is rounded, for precisions that round much.
  private typealias Errors = [Precision: [String: Double]]

  /// A step towards single precision.
  private struct Raise {
    let layers: [String]
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
    for precision in [Precision.fp32, .fp16, .bf16, .int8, .int4]
    where study.layers.contains(where: { $0.choices.contains(precision) }) {
      uniform.append(try measure(precision))
      try report(uniform.count, 0, start)
    }
    var choice: [String: Precision] = [:]
    for unit in units { set(&choice, unit, fastest(unit, uniform)) }
    var outcome = try verified(choice)
    var errors = Errors()
    if outcome.error.value(metric) > budget {
      errors = try layerErrors(choice, start)
      for candidate in uniform where [.bf16, .fp16].contains(candidate.precision) {
        errors[candidate.precision] = try floatErrors(candidate, beside: outcome.error.noise, start)
      }
      if try improveRanges(&errors[.int8, default: [:]], start) > 0 {
        uniform = try uniform.map { old throws(ApusError) in
          old.precision == .int8 ? try measure(.int8) : old
        }
        for unit in units { set(&choice, unit, fastest(unit, uniform)) }
        outcome = try verified(choice)
      }
    }
    if outcome.error.value(metric) > budget {
      let raises = raises(choice, errors, uniform)
      (choice, outcome) = try shortest(raises, choice, start)
    }
    return try settled(choice, outcome, errors, uniform)
  }

  private func measure(_ precision: Precision) throws(ApusError) -> Uniform {
    var choice: [String: Precision] = [:]
    for layer in study.layers where layer.choices.contains(precision) { choice[layer.name] = precision }
    let precisions = study.precisions(choice)
    let engine = try study.engine(precisions)
    return Uniform(
      precision: precision, times: try study.layerTimes(precisions),
      error: try study.error(of: engine), engine: engine)
  }

  /// The precision in which layers measure fastest; a narrower one must be so by more than noise.
  private func fastest(_ unit: Unit, _ uniform: [Uniform]) -> Precision {
    var best = (precision: Precision.fp32, seconds: Double.infinity)
    for candidate in uniform where unit.choices.contains(candidate.precision) {
      guard let seconds = unit.seconds(candidate) else { continue }
      if seconds < best.seconds * 0.97 { best = (candidate.precision, seconds) }
    }
    return best.precision
  }

  private func verified(_ choice: [String: Precision]) throws(ApusError) -> (
    engine: Engine, error: OutputError
  ) {
    let engine = try study.engine(study.precisions(choice), isDraft: true)
    let error = try study.error(of: engine)
    return (engine, error)
  }

  /// The error energy of each layer that rounds to integers, measured with it alone rounded: in its own precision,
  /// and in the wider ones it may be raised to. Layers that read the same tensor share the error by their number,
  /// and in long networks groups of neighbours.
  private func layerErrors(_ choice: [String: Precision], _ start: Double) throws(ApusError) -> Errors {
    var errors = Errors()
    for (precision, narrower) in [(Precision.int8, [Precision.int8, .int4]), (.int4, [.int4])] {
      let narrow = units.filter { unit in
        unit.choices.contains(precision) && choice[unit.layers[0].name].map(narrower.contains) ?? false
      }
      let size = (narrow.count + Self.groupLimit - 1) / Self.groupLimit
      for first in stride(from: 0, to: narrow.count, by: max(1, size)) {
        let group = narrow[first..<min(narrow.count, first + size)].flatMap(\.layers)
        let alone = Dictionary(uniqueKeysWithValues: group.map { ($0.name, precision) })
        let noise = try verified(alone).error.noise
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
        let error = try verified(Dictionary(uniqueKeysWithValues: alone)).error
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

  /// All steps towards single precision, the most worthwhile first.
  ///
  /// Of a layer's precisions only those count that no mix of two others beats: the corners of the lower
  /// convex hull of time and error. Its steps then take away less and less for what they cost, so that the
  /// order over all layers keeps the order in each.
  private func raises(
    _ choice: [String: Precision], _ errors: Errors, _ uniform: [Uniform]
  ) -> [Raise] {
    func error(_ unit: Unit, _ precision: Precision) -> Double {
      unit.layers.reduce(0) { $0 + (self.error($1.name, precision, errors) ?? .infinity) }
    }
    var raises: [Raise] = []
    for unit in units {
      guard var now = choice[unit.layers[0].name], let times = Self.times(of: unit, uniform) else { continue }
      while let next = Self.steepest(
        from: (times[now] ?? 0, error(unit, now)),
        to: times.map { ($0.key, $0.value, error(unit, $0.key)) })
      {
        raises.append(
          Raise(
            layers: unit.layers.map(\.name), precision: next.precision, gain: next.gain, cost: next.cost))
        now = next.precision
      }
    }
    return raises.sorted { $0.gain * $1.cost > $1.gain * $0.cost }
  }

  /// The error energy of a layer; nil when it was not measured.
  private func error(_ layer: String, _ precision: Precision, _ errors: Errors) -> Double? {
    precision == .fp32 ? 0 : errors[precision]?[layer]
  }

  /// The times of layers in each of their precisions.
  private static func times(of unit: Unit, _ uniform: [Uniform]) -> [Precision: Double]? {
    let pairs = uniform.filter { unit.choices.contains($0.precision) }
      .compactMap { candidate in unit.seconds(candidate).map { (candidate.precision, $0) } }
    return pairs.isEmpty ? nil : Dictionary(uniqueKeysWithValues: pairs)
  }

  /// The precision that takes away most error for the time it costs; nil when none takes any away.
  private static func steepest(
    from now: (seconds: Double, error: Double),
    to others: [(precision: Precision, seconds: Double, error: Double)]
  ) -> (precision: Precision, gain: Double, cost: Double)? {
    let steps = others.compactMap { other -> (precision: Precision, gain: Double, cost: Double)? in
      let gain = now.error - other.error
      // By noise a wider precision may measure no slower.
      return gain > 0 ? (other.precision, gain, max(1e-9, other.seconds - now.seconds)) : nil
    }
    return steps.max { a, b in
      let (left, right) = (a.gain * b.cost, b.gain * a.cost)
      return left == right ? a.precision.rawValue > b.precision.rawValue : left < right
    }
  }

  /// The shortest beginning of the steps with which the budget is kept.
  ///
  /// Measured of one engine the metric scatters, so that of many beginnings some would seem good or bad by chance:
  /// the place where it meets the budget is read off a curve through all that were measured. From there steps
  /// are taken one by one.
  private func shortest(
    _ raises: [Raise], _ choice: [String: Precision], _ start: Double
  ) throws(ApusError) -> ([String: Precision], (engine: Engine, error: OutputError)) {
    let left = Self.left(after: raises)
    var (low, high) = (0, raises.count)
    var curve = BudgetCurve()
    func measure(_ place: Int) throws(ApusError) -> (engine: Engine, error: OutputError) {
      try report(place, raises.count, start)
      let candidate = try verified(Self.raised(choice, by: raises[..<place]))
      curve.add(noise: left[place], metric: candidate.error.value(metric))
      return candidate
    }
    while high - low > 1 {
      let middle = (low + high) / 2
      if try measure(middle).error.value(metric) <= budget { high = middle } else { low = middle }
    }
    if let noise = curve.noise(at: budget) { high = left.firstIndex { $0 <= noise } ?? raises.count }
    var best = try measure(high)
    while best.error.value(metric) > budget, high < raises.count {
      high += 1
      best = try measure(high)
    }
    while high > 0 {
      let candidate = try measure(high - 1)
      guard candidate.error.value(metric) <= budget else { break }
      (high, best) = (high - 1, candidate)
    }
    return (Self.raised(choice, by: raises[..<high]), best)
  }

  /// The error energy that steps yet to come would take away, after each beginning of them.
  private static func left(after raises: [Raise]) -> [Double] {
    var left = [0.0]
    for raise in raises.reversed() { left.append(left[left.count - 1] + raise.gain) }
    return left.reversed()
  }

  /// A choice after steps towards single precision.
  private static func raised(_ choice: [String: Precision], by raises: ArraySlice<Raise>)
    -> [String: Precision]
  {
    var result = choice
    for raise in raises { for layer in raise.layers { result[layer] = raise.precision } }
    return result
  }

  /// The mix, or one precision for all layers where that keeps the budget and measures no slower.
  private func settled(
    _ choice: [String: Precision], _ outcome: (engine: Engine, error: OutputError),
    _ errors: Errors, _ uniform: [Uniform]
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
    for unit in units { set(&quickest, unit, fastest(unit, uniform)) }
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

  private func report(_ done: Int, _ total: Int, _ start: Double) throws(ApusError) {
    guard let progress else { return }
    let goesOn = progress(
      BuildProgress(
        phase: "precision", done: done, total: max(done, total), timed: 0,
        elapsedSeconds: Clock.seconds - start, remainingSeconds: nil))
    if !goesOn { throw ApusError(.cancelled, "choosing precisions was cancelled") }
  }
}
