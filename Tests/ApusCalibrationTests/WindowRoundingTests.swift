// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCalibration
import ApusTensor
import Testing

/// Weights of a window that make up for each other's rounding errors.
@Suite struct WindowRoundingTests {
  /// The square error of a result for errors of the weights, when pixels at distance d have a correlation
  /// of 0.8^d.
  private func expected(_ errors: [Double], window: [Int], dilations: [Int]) -> Double {
    func places(_ index: Int) -> [Int] {
      var rest = index
      return zip(window, dilations).reversed().map { size, dilation in
        defer { rest /= size }
        return rest % size * dilation
      }
    }
    var sum = 0.0
    for k in errors.indices {
      for j in errors.indices {
        let distance = zip(places(k), places(j)).reduce(0) { $0 + abs($1.0 - $1.1) }
        sum += errors[k] * errors[j] * (0..<distance).reduce(1.0) { power, _ in power * 0.8 }
      }
    }
    return sum
  }

  /// Numbers between -1 and 1.
  private func noise(_ count: Int) -> [Float] {
    var state: UInt64 = 7
    return (0..<count).map { _ in
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Float(Int64(bitPattern: state) >> 32) / Float(1 << 31)
    }
  }

  @Test(arguments: [
    ([3, 3], [1, 1]), ([5, 5], [1, 1]), ([7, 7], [1, 1]), ([3, 3], [2, 2]), ([1, 5], [1, 1]), ([3], [1]),
    ([3, 3, 3], [1, 1, 1]),
  ]) func errorsOfAWindowMakeUpForEachOther(window: [Int], dilations: [Int]) throws {
    let count = window.reduce(1, *)
    let rounding = try #require(
      SequentialRounding(window: window, dilations: dilations).flatMap { RowRounding($0, columnCount: 5 * count) })
    let weights = try Tensor(noise(6 * 5 * count), shape: [6, 5] + window)
    let values = weights.doubles()
    var errors: [Double] = []
    for way in [nil, rounding] {
      let result = try WeightQuantization.perChannel(weights, axis: 0, rounding: way)
      let (bytes, scales) = (result.bytes.ints(), result.scales.doubles())
      #expect(bytes.allSatisfy { abs($0) <= 127 })
      var sum = 0.0
      for first in stride(from: 0, to: values.count, by: count) {
        let steps = (first..<first + count).map { index in
          values[index] / scales[index / (5 * count)] - Double(bytes[index])
        }
        // Nothing moves far from where it was.
        #expect(steps.allSatisfy { abs($0) < 3 })
        sum += expected(steps, window: window, dilations: dilations)
      }
      errors.append(sum)
    }
    #expect(errors[1] < 0.75 * errors[0], "\(errors)")
  }

  @Test func brokenNumbersAreNoTrap() throws {
    let rounding = SequentialRounding(window: [3, 3], dilations: [1, 1])
      .flatMap { RowRounding($0, columnCount: 9) }
    for broken in [Float.nan, .infinity, -.infinity] {
      var values = noise(18)
      values[4] = broken
      _ = try WeightQuantization.perChannel(
        Tensor(values, shape: [2, 1, 3, 3]), axis: 0, rounding: rounding)
    }
  }

  @Test func singleWeightsAreRoundedAlone() {
    #expect(SequentialRounding(window: [1, 1], dilations: [1, 1]) == nil)
    #expect(SequentialRounding(window: [40, 40], dilations: [1, 1]) == nil)
    #expect(SequentialRounding(window: [3, 3], dilations: [1]) == nil)
  }
}
