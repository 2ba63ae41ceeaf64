// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The arithmetic of `Resize`: axis by axis, every element of the result is a weighted sum of
/// elements along that axis.
struct Resampler {
  /// The elements that make up one element of the result, and whether it lies outside the input.
  private struct Taps {
    var indices: [Int]
    var weights: [Double]
    var isOutside: Bool
  }

  private let op: Resize
  private let changes: [Resize.AxisChange]

  init(_ op: Resize, _ changes: [Resize.AxisChange]) {
    self.op = op
    self.changes = changes
  }

  func run(_ x: Tensor) throws(ApusError) -> Tensor {
    var shape = x.shape
    for change in changes { shape[change.axis] = change.output }
    let count = try Tensor.checkedCount(shape)
    guard count > 0 else { return try Tensor(x.dataType, shape: shape) }
    let isNearest = op.mode == .nearest
    guard isNearest || x.dataType.isFloat || x.dataType.isInteger else {
      throw ApusError(.typeMismatch, "\(op.mode) resampling of elements of type \(x.dataType)")
    }
    var current = x.shape
    var values = isNearest ? [] : x.doubles()
    var picked = x
    var outside: [(axis: Int, places: [Bool])] = []
    for change in changes {
      let taps = (0..<change.output).map { makeTaps($0, change) }
      if taps.contains(where: \.isOutside) { outside.append((change.axis, taps.map(\.isOutside))) }
      let isIdentity =
        change.input == change.output
        && taps.enumerated().allSatisfy { $1.indices == [$0] && $1.weights == [1] }
      if isIdentity { continue }
      let (outer, size, inner) = Axis.split(current, at: change.axis)
      current[change.axis] = change.output
      _ = try Tensor.checkedCount(current)
      if isNearest {
        var buffer = try ElementBuffer(x.dataType, shape: current)
        buffer.copyRuns(from: picked, length: inner, count: outer * change.output) { row in
          let (o, place) = row.quotientAndRemainder(dividingBy: change.output)
          return (target: row * inner, source: (o * size + taps[place].indices[0]) * inner)
        }
        picked = try buffer.finished()
      } else {
        values = Self.combine(values, taps, outer: outer, size: size, inner: inner)
      }
    }
    if outside.isEmpty {
      return isNearest ? picked : try Tensor(values, x.dataType, shape: shape)
    }
    guard x.dataType != .string else {
      throw ApusError(.typeMismatch, "texts cannot be extrapolated")
    }
    if isNearest { values = picked.doubles() }
    for (axis, places) in outside {
      let (outer, size, inner) = Axis.split(shape, at: axis)
      for o in 0..<outer {
        for place in 0..<size where places[place] {
          let start = (o * size + place) * inner
          for i in start..<(start + inner) { values[i] = op.extrapolationValue }
        }
      }
    }
    return try Tensor(values, x.dataType, shape: shape)
  }

  private static func combine(
    _ values: [Double], _ taps: [Taps], outer: Int, size: Int, inner: Int
  ) -> [Double] {
    var result = [Double](repeating: 0, count: outer * taps.count * inner)
    values.withUnsafeBufferPointer { values in
      result.withUnsafeMutableBufferPointer { result in
        for o in 0..<outer {
          for (place, tap) in taps.enumerated() {
            let target = (o * taps.count + place) * inner
            for (index, weight) in zip(tap.indices, tap.weights) {
              let source = (o * size + index) * inner
              for i in 0..<inner { result[target + i] += weight * values[source + i] }
            }
          }
        }
      }
    }
    return result
  }

  /// Where in the input place `index` of the result lies.
  private func coordinate(_ index: Int, _ change: Resize.AxisChange) -> Double {
    let x = Double(index)
    let (input, output) = (Double(change.input), Double(change.output))
    // A scale that is the quotient of the sizes is used as one, so that whole places come out whole.
    let isQuotient = change.scale == output / input
    // Without rounding, as the standard's tests have it.
    let length = isQuotient ? output : change.scale * input
    func unscaled(_ value: Double) -> Double {
      isQuotient ? value * input / output : value / change.scale
    }
    switch op.coordinates {
    case .halfPixel: return unscaled(x + 0.5) - 0.5
    case .halfPixelSymmetric:
      let adjustment = output / length
      return input / 2 * (1 - adjustment) + unscaled(x + 0.5) - 0.5
    case .pytorchHalfPixel: return change.output > 1 ? unscaled(x + 0.5) - 0.5 : 0
    case .alignCorners: return change.output > 1 ? x * (input - 1) / (length - 1) : 0
    case .asymmetric: return unscaled(x)
    case .tfHalfPixelForNN: return unscaled(x + 0.5)
    case .tfCropAndResize:
      if change.output > 1 {
        return change.start * (input - 1)
          + x * (change.end - change.start) * (input - 1) / (length - 1)
      }
      return 0.5 * (change.start + change.end) * (input - 1)
    }
  }

  private func makeTaps(_ index: Int, _ change: Resize.AxisChange) -> Taps {
    let last = change.input - 1
    var x = coordinate(index, change)
    let isOutside =
      op.coordinates == .tfCropAndResize && !(x >= 0 && x <= Double(last))
    // Far away is as good as the edge.
    x = x.isNaN ? 0 : max(-0x1p40, min(0x1p40, x))
    func clamped(_ index: Int) -> Int { max(0, min(last, index)) }
    if op.mode == .nearest {
      return Taps(indices: [clamped(nearest(x))], weights: [1], isOutside: isOutside)
    }
    let base = Int(x.rounded(.up)) - 1
    let ratio = x - Double(base)
    let scale = op.antialias ? min(change.scale, 1) : 1
    let reach = op.mode == .linear ? 1.0 : 2.0
    let start = Int((-reach / scale).rounded(.down)) + 1
    var indices: [Int] = []
    var weights: [Double] = []
    for tap in start..<(2 - start) {
      let distance = abs((Double(tap) - ratio) * scale)
      let weight = op.mode == .linear ? max(0, 1 - distance) : cubic(distance)
      let place = base + tap
      let isInside = place >= 0 && place <= last
      guard weight != 0, isInside || !op.excludeOutside else { continue }
      indices.append(clamped(place))
      weights.append(weight)
    }
    let sum = weights.reduce(0, +)
    if sum == 0 || !sum.isFinite {
      return Taps(indices: [clamped(base + 1)], weights: [1], isOutside: isOutside)
    }
    if op.antialias || op.excludeOutside { weights = weights.map { $0 / sum } }
    return Taps(indices: indices, weights: weights, isOutside: isOutside)
  }

  private func nearest(_ x: Double) -> Int {
    switch op.nearest {
    case .roundPreferFloor: Int((x - 0.5).rounded(.up))
    case .roundPreferCeil: Int((x + 0.5).rounded(.down))
    case .floor: Int(x.rounded(.down))
    case .ceil: Int(x.rounded(.up))
    }
  }

  /// The weight of an element at this distance (Keys, 1981).
  private func cubic(_ d: Double) -> Double {
    let a = op.cubicCoefficient
    if d <= 1 { return ((a + 2) * d - (a + 3)) * d * d + 1 }
    if d < 2 { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a }
    return 0
  }
}
