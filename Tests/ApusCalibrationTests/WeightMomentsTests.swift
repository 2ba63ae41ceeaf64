// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusTensor
import Foundation
import Testing

/// Weights that are rounded by the moments of what they multiply.
@Suite struct WeightMomentsTests {
  /// Numbers between -1 and 1.
  private struct Noise {
    var state: UInt64 = 11

    mutating func next() -> Float {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Float(Int64(bitPattern: state) >> 32) / Float(1 << 31)
    }
  }

  /// Rows of numbers, rectified, each made of a few common ones and a little of its own.
  private func rows(_ count: Int, _ columns: Int) -> [[Float]] {
    var noise = Noise()
    let mixture = (0..<columns).map { _ in (0..<4).map { _ in noise.next() } }
    return (0..<count).map { _ in
      let common = (0..<4).map { _ in noise.next() }
      return mixture.map { max(0, zip($0, common).reduce(0.2 * noise.next()) { $0 + $1.0 * $1.1 }) }
    }
  }

  private func sums(_ blocks: MomentBlocks, _ rows: [[Float]]) -> MomentSums {
    var sums = MomentSums(blocks)
    for row in rows { row.withUnsafeBufferPointer { sums.add($0.baseAddress!) } }
    return sums
  }

  /// The mean square error of a product's results over rows.
  private func error(
    _ weights: Tensor, _ result: WeightQuantization.Result, axis: Int, groups: Int, _ rows: [[Float]]
  ) -> Double {
    let (values, bytes, scales) = (weights.doubles(), result.bytes.ints(), result.scales.doubles())
    let outputs = weights.shape[axis]
    let size = values.count / outputs
    var sum = 0.0
    for output in 0..<outputs {
      let group = output / (outputs / groups)
      let errors = (0..<size).map { k in
        let index = axis == 0 ? output * size + k : k * outputs + output
        return Double(bytes[index]) * scales[output] - values[index]
      }
      for row in rows {
        let e = (0..<size).reduce(0.0) { $0 + errors[$1] * Double(row[group * size + $1]) }
        sum += e * e
      }
    }
    return sum
  }

  /// Convolutions of one group, several, depthwise; a window larger than a block; a matrix.
  @Test(arguments: [
    ([12, 40, 1, 1], 0, 1), ([8, 90, 1, 1], 0, 1), ([8, 6, 3, 3], 0, 1), ([8, 20, 1, 1], 0, 4),
    ([10, 1, 3, 3], 0, 10), ([4, 2, 9, 9], 0, 1), ([70, 9], 1, 1),
  ]) func errorsInResultsShrink(shape: [Int], axis: Int, groups: Int) throws {
    let outputs = shape[axis]
    let window = shape.dropFirst(2).reduce(1, *)
    let blocks = try #require(MomentBlocks(groups: groups, channels: shape[1 - axis], window: window))
    #expect(blocks.ranges.reduce(0) { $0 + $1.count } == blocks.rowCount)
    let seen = rows(1500, blocks.columnCount)
    var noise = Noise(state: 5)
    let weights = try Tensor((0..<blocks.rowCount * outputs).map { _ in noise.next() }, shape: shape)
    let rounding = try #require(sums(blocks, Array(seen[..<1000])).moments.rounding)
    let nearest = try WeightQuantization.perChannel(weights, axis: axis)
    let together = try WeightQuantization.perChannel(weights, axis: axis, rounding: rounding)
    #expect(together.bytes.ints().allSatisfy { abs($0) <= 127 })
    // Judged by other rows than those whose moments were taken.
    let rest = Array(seen[1000...])
    let before = error(weights, nearest, axis: axis, groups: groups, rest)
    let after = error(weights, together, axis: axis, groups: groups, rest)
    #expect(after < 0.75 * before, "\(shape): \(after / before) of the error")
  }

  @Test func fewRowsDoNoHarm() throws {
    let blocks = try #require(MomentBlocks(groups: 1, channels: 64, window: 1))
    let seen = rows(1000, 64)
    var noise = Noise(state: 9)
    let weights = try Tensor((0..<64 * 16).map { _ in noise.next() }, shape: [16, 64, 1, 1])
    let nearest = try WeightQuantization.perChannel(weights, axis: 0)
    let rounding = try #require(sums(blocks, Array(seen[..<4])).moments.rounding)
    let together = try WeightQuantization.perChannel(weights, axis: 0, rounding: rounding)
    let rest = Array(seen[4...])
    #expect(
      error(weights, together, axis: 0, groups: 1, rest)
        < 1.05 * error(weights, nearest, axis: 0, groups: 1, rest))
  }

  /// A channel that is always zero, and moments of nothing.
  @Test func zerosAreRoundedToTheNearest() throws {
    let blocks = try #require(MomentBlocks(groups: 1, channels: 3, window: 1))
    let moments = sums(blocks, [[1, 0, 2], [2, 0, 1]]).moments
    let weights = try Tensor([0.3, -0.7, 1, 0.2, 0.9, -1], shape: [2, 3, 1, 1])
    let nearest = try WeightQuantization.perChannel(weights, axis: 0).bytes.ints()
    let seen = try WeightQuantization.perChannel(weights, axis: 0, rounding: moments.rounding).bytes.ints()
    #expect(seen[1] == nearest[1] && seen[4] == nearest[4])
    let empty = try WeightQuantization.perChannel(
      weights, axis: 0, rounding: MomentSums(blocks).moments.rounding)
    #expect(empty.bytes.ints() == nearest)
  }

  @Test func textRoundTrips() throws {
    let blocks = try #require(MomentBlocks(groups: 2, channels: 9, window: 9))
    let sums = sums(blocks, rows(20, blocks.columnCount))
    let again = try #require(MomentSums(parsing: sums.text))
    #expect(again.text == sums.text && again.moments == sums.moments)
    var table = CalibrationTable(entries: [:], calibrator: .mse, modelHash: 3, sampleCount: 20)
    table.moments = ["conv": sums.moments]
    let read = try CalibrationTable(parsing: table.text)
    #expect(read == table && read.text == table.text)
  }

  @Test func damagedTextIsRefused() throws {
    let blocks = try #require(MomentBlocks(groups: 1, channels: 3, window: 1))
    let sums = sums(blocks, rows(5, 3))
    for text in [
      "", "1 3 1 5", "1 3 1 5 00", "0 3 1 5 \(sums.text.split(separator: " ")[4])", "1 3 1 -1 0",
      sums.text.replacingLast(with: "g"), sums.text + "0", "1 4 1 5 \(sums.text.split(separator: " ")[4])",
      // Not a number.
      "1 1 1 5 7fc00000", "1 9223372036854775807 9223372036854775807 1 0",
    ] { #expect(MomentSums(parsing: text) == nil, "\(text)") }
    var table = CalibrationTable(entries: [:], calibrator: .mse, modelHash: 3, sampleCount: 20)
    table.moments = ["conv": sums.moments]
    let line = table.text.split(separator: "\n").last!
    let fields = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
    for (index, text) in [(2, "1 3 1"), (2, "1 3 2 5"), (2, "1 -3 1 5"), (3, "1 2"), (3, "1 2 nan"),
      (3, "1 2 -1"), (4, ""), (4, "!!0000"), (4, "000000")]
    {
      var broken = fields
      broken[index] = text
      let whole = table.text.replacingOccurrences(of: String(line), with: broken.joined(separator: "\t"))
      #expect(throws: ApusError.self, "\(index) \(text)") { try CalibrationTable(parsing: whole) }
    }
    #expect(MomentBlocks(groups: 1, channels: 1, window: 122) == nil)
    #expect(MomentBlocks(groups: 1 << 20, channels: 1 << 20, window: 9) == nil)
  }
}

extension String {
  fileprivate func replacingLast(with text: String) -> String { dropLast() + text }
}
