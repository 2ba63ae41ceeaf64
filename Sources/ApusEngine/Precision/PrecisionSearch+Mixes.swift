// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Mixes of precisions within a budget.
extension PrecisionSearch {
  /// One way to compute a unit, and the error it adds.
  typealias Option = (choice: [String: Precision], cost: PrecisionKnapsack.Option)

  /// What there is for each unit, each way once.
  func options(_ errors: Errors, _ times: Times) -> [[Option]] {
    units.compactMap { unit in
      var options: [Option] = []
      for option in times.compactMap({ unit.option($0) })
      where !options.contains(where: { $0.choice == option.choice }) {
        let errors = option.choice.map { error($0.key, $0.value, errors) ?? .infinity }.sorted()
        options.append(
          Option(option.choice, PrecisionKnapsack.Option(seconds: option.seconds, error: errors.reduce(0, +))))
      }
      return options.isEmpty ? nil : options
    }
  }

  /// The error energy of a layer; nil when it was not measured.
  func error(_ layer: String, _ precision: Precision, _ errors: Errors) -> Double? {
    precision == .fp32 ? 0 : errors[precision]?[layer]
  }

  /// The fastest mix with which the budget is kept, by the times measured of layers, and others by those measured in
  /// its engine.
  func mixesWithin(_ budget: Double, fastest: Mix, _ options: [[Option]], _ start: Double)
    throws(ApusError) -> [Mix]
  {
    var options = options
    var mixes = [try mix(within: budget, fastest.error, options, start)]
    for _ in 0..<Self.mostCorrections {
      guard let last = mixes.last,
        let corrected = try timedInPlace(options, last.choice, fastest.choice, start)
      else { break }
      options = corrected
      let next = try mix(within: budget, fastest.error, options, start)
      if mixes.contains(where: { $0.choice == next.choice }) { break }
      mixes.append(next)
    }
    return mixes
  }

  /// The fastest mix with which the budget is kept.
  ///
  /// Measured of one engine the metric scatters, so that of many engines some would seem good or bad by chance:
  /// the error energy at which it meets the budget is read off a curve through some that are measured, and
  /// the engine for this energy must keep the budget in fact.
  private func mix(within budget: Double, _ fastest: OutputError, _ options: [[Option]], _ start: Double)
    throws(ApusError) -> Mix
  {
    let knapsack = PrecisionKnapsack(options.map { $0.map(\.cost) })
    func choice(_ limit: Double) -> (precisions: [String: Precision], noise: Double) {
      var (precisions, noise) = ([String: Precision](), 0.0)
      for (index, own) in zip(knapsack.choose(limit: limit) ?? [], options) {
        precisions.merge(own[index].choice) { $1 }
        noise += own[index].cost.error
      }
      return (precisions, noise)
    }
    var curve = BudgetCurve()
    var limit = fastest.noise * Self.firstShare
    for engine in 0..<Self.curvePoints {
      try report(engine, Self.curvePoints, start)
      let candidate = choice(limit)
      let metric = try verified(candidate.precisions).value(metric)
      curve.add(noise: candidate.noise, metric: metric)
      let guess = metric > 0 ? (budget / metric) * (budget / metric) : .infinity
      limit = curve.noise(at: budget) ?? limit * min(max(guess, 1 / Self.mostStep), Self.mostStep)
    }
    var step = 1.0
    for _ in 0..<Self.mostTries {
      let chosen = choice(limit).precisions
      let error = try verified(chosen)
      if error.value(metric) <= budget { return Mix(choice: chosen, error: error) }
      step *= Self.stepBack
      limit *= step
    }
    let exact = choice(0).precisions
    return Mix(choice: exact, error: try verified(exact))
  }

  /// Options with the times that those of a mix have in its engine; nil when they are as expected.
  ///
  /// A layer in another precision than its neighbours' may make their kernels slower and keep them out of chains,
  /// which shows in no engine of one precision: so the mix is measured beside the same with the layer in its fastest.
  private func timedInPlace(
    _ options: [[Option]], _ mix: [String: Precision], _ fastest: [String: Precision], _ start: Double
  ) throws(ApusError) -> [[Option]]? {
    let engine = try study.engine(study.precisions(mix))
    var (corrected, isCorrected) = (options, false)
    for (unit, own) in options.enumerated() {
      try report(unit, options.count, start)
      func option(in choice: [String: Precision]) -> Int? {
        own.firstIndex { $0.choice.allSatisfy { choice[$0.key] == $0.value } }
      }
      guard let slow = option(in: mix), let quick = option(in: fastest), slow != quick else { continue }
      let other = try study.engine(study.precisions(mix.merging(own[quick].choice) { $1 }))
      let times = try study.times([engine, other], seconds: Self.inPlaceSeconds)
      let cost = own[slow].cost
      let seconds = own[quick].cost.seconds + times[0] - times[1]
      guard abs(seconds - cost.seconds) > Self.unexpected * times[0] else { continue }
      corrected[unit][slow].cost = PrecisionKnapsack.Option(seconds: seconds, error: cost.error)
      isCorrected = true
    }
    return isCorrected ? corrected : nil
  }

  /// Of the fastest engine's error, what is tried first.
  private static let firstShare = 0.3
  private static let curvePoints = 6
  private static let mostStep = 4.0
  /// Where an engine misses the budget, the next has so much of its error, and each one after it takes a longer step.
  private static let stepBack = 0.97
  private static let mostTries = 12
  /// Each engine is measured so long for one layer's time, and less than this share of its own is chance.
  private static let inPlaceSeconds = 0.15
  private static let unexpected = 0.007
  private static let mostCorrections = 2
}
