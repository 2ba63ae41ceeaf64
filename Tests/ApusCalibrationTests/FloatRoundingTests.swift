// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCalibration
import ApusTensor
import Testing

/// Weights in `bfloat16` that make up for each other's rounding errors.
@Suite struct FloatRoundingTests {
  private func noise(_ count: Int) -> [Float] {
    var state: UInt64 = 11
    return (0..<count).map { _ in
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Float(Int64(bitPattern: state) >> 32) / Float(1 << 31)
    }
  }

  /// What windows make of pixels that are all alike: the sums of the weights' errors, squared.
  private func error(_ rounded: Tensor, _ weights: Tensor, window: Int) -> Double {
    let differences = zip(rounded.doubles(), weights.doubles()).map { $0 - $1 }
    return stride(from: 0, to: differences.count, by: window).reduce(0) { sum, first in
      let total = differences[first..<first + window].reduce(0, +)
      return sum + total * total
    }
  }

  @Test(arguments: [([3, 3], []), ([5, 5], [1, 1]), ([3, 3], [2, 2]), ([7], []), ([1, 2, 3], [])])
  func depthwiseWindowsKeepTheirSum(window: [Int], dilations: [Int]) throws {
    let count = window.reduce(1, *)
    let weights = try Tensor(noise(64 * count), shape: [64, 1] + window)
    let rounded = try FloatRounding.depthwise(weights, dilations: dilations)
    #expect(rounded.dataType == .bfloat16 && rounded.shape == weights.shape)
    let alone = try weights.converted(to: .bfloat16)
    #expect(error(rounded, weights, window: count) < 0.2 * error(alone, weights, window: count))
    // The largest weight of a window is rounded first, and to the nearest.
    for first in stride(from: 0, to: weights.count, by: count) {
      let values = Array(weights.floats()[first..<first + count])
      let largest = first + (values.indices.max { abs(values[$0]) < abs(values[$1]) } ?? 0)
      #expect(rounded.floats()[largest] == alone.floats()[largest])
    }
    for (a, b) in zip(rounded.doubles(), weights.doubles()) { #expect(abs(a - b) < 0.02) }
  }

  @Test func rowsAreRoundedByWhatTheyMultiply() throws {
    let rounding = try #require(
      SequentialRounding(window: [3, 3], dilations: [1, 1]).flatMap { RowRounding($0, columnCount: 36) })
    let weights = try Tensor(noise(16 * 36), shape: [16, 4, 3, 3])
    let rounded = try FloatRounding.bfloat16(weights, axis: 0, rounding)
    let alone = try FloatRounding.bfloat16(weights, axis: 0, nil)
    #expect(alone.floats() == (try weights.converted(to: .bfloat16).floats()))
    #expect(error(rounded, weights, window: 9) < 0.5 * error(alone, weights, window: 9))
    // A matrix has its rows side by side.
    let columns = try Tensor(noise(36 * 5), shape: [36, 5])
    let turned = try Tensor(
      (0..<5).flatMap { column in (0..<36).map { columns.floats()[$0 * 5 + column] } }, shape: [5, 36])
    let matrix = try FloatRounding.bfloat16(columns, axis: 1, rounding).floats()
    let same = try FloatRounding.bfloat16(turned, axis: 0, rounding).floats()
    for column in 0..<5 { for row in 0..<36 { #expect(matrix[row * 5 + column] == same[column * 36 + row]) } }
  }

  @Test func whatCannotBeRoundedTogetherIsRoundedAlone() throws {
    var values = noise(18)
    for broken in [Float.nan, .infinity, 3.4e38, 0] {
      values[4] = broken
      let weights = try Tensor(values, shape: [2, 1, 3, 3])
      let rounded = try FloatRounding.depthwise(weights, dilations: [])
      #expect(rounded.count == 18)
    }
    let point = try Tensor(noise(4), shape: [4, 1, 1, 1])
    #expect(
      try FloatRounding.depthwise(point, dilations: []).floats() == point.converted(to: .bfloat16).floats())
  }
}
