// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCalibration
import Testing

@Suite struct HistogramTests {
  private func histogram(_ batches: [[Float]]) -> MagnitudeHistogram {
    var result = MagnitudeHistogram()
    for batch in batches { batch.withUnsafeBufferPointer { result.add($0) } }
    return result
  }

  private func numbers(_ count: Int, seed: UInt64, scale: Float) -> [Float] {
    var state = seed
    return (0..<count).map { _ in
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let unit = Float(state >> 40) / Float(1 << 24) - 0.5
      return unit * unit * unit * scale
    }
  }

  @Test func orderAndGroupingDoNotMatter() {
    // Each batch is larger than the one before, so that bins are joined on the way.
    let batches = (1...7).map { numbers(500, seed: UInt64($0), scale: Float(1 << $0)) }
    let forward = histogram(batches)
    #expect(histogram(batches.reversed()) == forward)
    #expect(histogram([Array(batches.joined())]) == forward)
    var merged = histogram(Array(batches[..<3]))
    merged.merge(histogram(Array(batches[3...])))
    #expect(merged == forward)
  }

  @Test func countsWhatIsThere() {
    let values: [Float] = [0, -0.0, 1, -3, 2.5, .nan, .infinity, 1e-30]
    let result = histogram([values])
    #expect(result.zeroCount == 2 && result.brokenCount == 2 && result.count == 6)
    #expect(result.lower == -3 && result.upper == 2.5 && result.largest == 3)
    #expect(result.bins.reduce(0, +) == 4)
    // The largest magnitude lies in the upper half of the bins.
    #expect(Int(3 / result.binWidth) >= MagnitudeHistogram.binCount / 2)
  }

  @Test func emptyAndZeroTensorsHaveNoRange() {
    for values in [[], [0, 0, 0]] as [[Float]] {
      let result = histogram([values])
      #expect(result.largest == 0)
      for calibrator in [Calibrator.entropy, .minmax, .mse, .percentile(99)] {
        #expect(calibrator.range(of: result).isEmpty)
      }
    }
  }

  @Test func textRoundTrips() throws {
    for batch in [numbers(1000, seed: 3, scale: 1e-20), numbers(9, seed: 4, scale: 1e30), [], [0]] {
      let result = histogram([batch])
      #expect(MagnitudeHistogram(parsing: result.text) == result)
    }
    for damaged in ["", "1 2", "x 0 1 0", "1 0 1 0 5:x", "1 0 1 0 9999:1", "900 0 1 0",
      "-9223372036854775808 0 1 0", "1 nan 1 0", "1 0 1 18446744073709551615 3:1",
      "1 0 1 0 3:18446744073709551615"] {
      #expect(MagnitudeHistogram(parsing: damaged) == nil)
    }
  }

  @Test func calibratorsClipOutliersAsFarAsTheySay() {
    // Magnitudes up to 1. A square error of 100 must be worth less than the rounding of all others.
    var values = numbers(400_000, seed: 5, scale: 8)
    values.append(100)
    let result = histogram([values])
    #expect(Calibrator.minmax.range(of: result).upper == 100)
    #expect(Calibrator.percentile(99.9).range(of: result).upper < 1.2)
    #expect(Calibrator.percentile(100).range(of: result).upper == 100)
    for calibrator in [Calibrator.entropy, .mse] {
      let range = calibrator.range(of: result)
      #expect(range.upper < 50 && range.lower < 0 && range.lower >= -1.01, "\(calibrator) \(range)")
    }
  }

  @Test func aLimitOfTheNetworkIsNoOutlier() {
    // Most numbers are small; some were cut to 6.
    let values = numbers(100_000, seed: 5, scale: 8) + [Float](repeating: 6, count: 1000)
    let result = histogram([values])
    #expect(result.endsInPlateau && Calibrator.entropy.range(of: result).upper == 6)
    #expect(!histogram([numbers(100_000, seed: 5, scale: 8) + [6]]).endsInPlateau)
  }

  @Test func leastSquaresIsTheBestOfAllThresholds() {
    let values = numbers(20_000, seed: 9, scale: 8) + [3, -4, 5]
    let result = histogram([values])
    func error(_ threshold: Double) -> Double {
      let step = threshold / 127.5
      return values.reduce(0.0) { sum, value in
        let clipped = max(-threshold, min(threshold, Double(value)))
        let rounded = (clipped / step).rounded() * step
        return sum + (Double(value) - rounded) * (Double(value) - rounded)
      }
    }
    let chosen = error(Calibrator.mse.threshold(of: result))
    let best = (1...200).map { error(Double($0) * 0.025) }.min() ?? 0
    #expect(chosen < 1.05 * best, "\(chosen) against \(best)")
  }

  @Test func namesRoundTrip() {
    for text in ["entropy", "minmax", "mse", "percentile:99.9"] {
      #expect(Calibrator(text)?.description == text)
    }
    for text in ["", "max", "percentile:", "percentile:0", "percentile:101", "percentile:x", "mse:1"] {
      #expect(Calibrator(text) == nil)
    }
  }
}
