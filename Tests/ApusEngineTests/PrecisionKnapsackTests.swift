// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusEngine
import ApusTestSupport
import Testing

@Suite struct PrecisionKnapsackTests {
  typealias Option = PrecisionKnapsack.Option

  /// The least time of all choices within a limit.
  private func exhaustive(_ options: [[Option]], limit: Double) -> Double? {
    var best: Double?
    func visit(_ index: Int, _ seconds: Double, _ error: Double) {
      guard error <= limit else { return }
      guard index < options.count else {
        best = min(best ?? .infinity, seconds)
        return
      }
      for option in options[index] { visit(index + 1, seconds + option.seconds, error + option.error) }
    }
    visit(0, 0, 0)
    return best
  }

  @Test(arguments: 1...40) func theLeastTimeWithinTheLimitIsFound(seed: Int) throws {
    var generator = SeededGenerator(seed: UInt64(seed))
    let options = (0..<(1 + seed % 7)).map { _ in
      (0..<(1 + Int.random(in: 0...3, using: &generator))).map { index in
        // Some have no error, some are never allowed.
        let error = index == 0 ? 0 : Double(Int.random(in: 1...40, using: &generator))
        return Option(
          seconds: Double.random(in: 1...10, using: &generator), error: index == 3 ? .infinity : error)
      }
    }
    let knapsack = PrecisionKnapsack(options)
    // Limits that whole errors are whole steps of lose nothing to rounding.
    for limit in [0, 16, 64, 128.0] {
      let chosen = try #require(knapsack.choose(limit: limit))
      let taken = zip(options, chosen).map { $0[$1] }
      let error = taken.reduce(0) { $0 + $1.error }
      let seconds = taken.reduce(0) { $0 + $1.seconds }
      #expect(error <= limit)
      let best = try #require(exhaustive(options, limit: limit))
      #expect(abs(seconds - best) < 1e-9, "\(seconds), not \(best)")
    }
  }

  @Test func whatCannotBeKeptIsSaid() {
    let knapsack = PrecisionKnapsack([[Option(seconds: 1, error: 2)], [Option(seconds: 1, error: 2)]])
    #expect(knapsack.choose(limit: 3.9) == nil)
    #expect(knapsack.choose(limit: 4) == [0, 0])
  }
}
