// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Chooses one option for each of many things, so that the time is least while their errors add up to no more than a
/// limit: the multiple-choice knapsack problem, by dynamic programming over the error in small steps (Kellerer,
/// Pferschy and Pisinger, Knapsack Problems, chapter 11).
package struct PrecisionKnapsack {
  /// What an option costs.
  package struct Option {
    package let seconds: Double
    package let error: Double

    package init(seconds: Double, error: Double) {
      self.seconds = seconds
      self.error = error
    }
  }

  private let options: [[Option]]
  /// Steps that the limit is divided into. Errors are rounded up to whole steps, so the limit is never exceeded.
  private static let steps = 4096

  /// The options of each thing.
  package init(_ options: [[Option]]) { self.options = options }

  /// The number of the option chosen for each thing; nil when no choice keeps the limit.
  package func choose(limit: Double) -> [Int]? {
    // The least time with at most so many steps of error, and by which option of each thing.
    var least = [Double](repeating: 0, count: Self.steps + 1)
    var chosen: [[Int]] = []
    for own in options {
      var next = [Double](repeating: .infinity, count: least.count)
      var taken = [Int](repeating: -1, count: least.count)
      for (index, option) in own.enumerated() {
        guard let cost = Self.cost(option.error, limit) else { continue }
        for step in cost...Self.steps where least[step - cost] + option.seconds < next[step] {
          next[step] = least[step - cost] + option.seconds
          taken[step] = index
        }
      }
      least = next
      chosen.append(taken)
    }
    guard least[Self.steps].isFinite else { return nil }
    var result: [Int] = []
    var step = Self.steps
    for (own, taken) in zip(options, chosen).reversed() {
      result.append(taken[step])
      step -= Self.cost(own[taken[step]].error, limit) ?? 0
    }
    return result.reversed()
  }

  /// An error in steps; nil when it is above the limit.
  private static func cost(_ error: Double, _ limit: Double) -> Int? {
    guard error > 0 else { return 0 }
    guard error <= limit else { return nil }
    return min(Self.steps, Int((error / limit * Double(steps)).rounded(.up)))
  }
}
