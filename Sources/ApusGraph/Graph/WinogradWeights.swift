// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// The weights of a 3x3 convolution in the form that Winograd's minimal filtering multiplies
/// (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015):
/// `U = G g G^T` for every pair of channels, `(m + 2)^2` numbers that serve `m x m` results.
public enum WinogradWeights {
  /// The sizes of results for which there are transforms.
  public static let resultSizes = [2, 4]

  /// `G`, and a left inverse of it, for results of `m` x `m`.
  static func matrices(_ m: Int) -> (g: [[Double]], inverse: [[Double]]) {
    if m == 2 {
      return (
        [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]]
      )
    }
    return (
      [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
      ],
      [[4, 0, 0, 0, 0, 0], [0, -3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    )
  }

  /// The largest magnitude that the transform of bytes, `B^T d B`, can have in each place.
  static func largestInputs(_ m: Int) -> [Int] {
    // The sums of the positive and of the negative factors of each row of `B^T`.
    let rows =
      m == 2
      ? [(1, 1), (2, 0), (1, 1), (1, 1)]
      : [(5, 5), (2, 8), (5, 5), (3, 3), (3, 3), (5, 5)]
    return rows.flatMap { a in
      rows.map { b in 255 * max(a.0 * b.0 + a.1 * b.1, a.0 * b.1 + a.1 * b.0) }
    }
  }

  /// How far apart elements lie along the places of a matrix, and from one channel to the next.
  private struct Strides {
    var place: Int
    var channel: Int
  }

  /// `[3, 3, C, O]` weights as `[C, (m + 2)^2, O]`.
  static func transform(_ weights: Tensor, m: Int, channels: Int, outputs: Int) throws(ApusError)
    -> Tensor
  {
    let places = (m + 2) * (m + 2)
    let result = try Tensor(.float32, shape: [channels, places, outputs])
    apply(
      matrices(m).g, weights, Strides(place: channels * outputs, channel: outputs), result,
      Strides(place: outputs, channel: places * outputs), channels, outputs)
    return result
  }

  /// The `[3, 3, C, O]` weights that `[C, (m + 2)^2, O]` came from, up to rounding.
  static func restore(_ transformed: Tensor, m: Int, channels: Int, outputs: Int, into dense: Tensor) {
    let places = (m + 2) * (m + 2)
    apply(
      matrices(m).inverse, transformed, Strides(place: outputs, channel: places * outputs), dense,
      Strides(place: channels * outputs, channel: outputs), channels, outputs)
  }

  /// `R x R^T` for the square matrix x of every pair of channels, a few outputs at a time.
  private static func apply(
    _ matrix: [[Double]], _ source: Tensor, _ from: Strides, _ target: Tensor, _ to: Strides,
    _ channels: Int, _ outputs: Int
  ) {
    let rows = matrix.count
    let inner = matrix.first?.count ?? 0
    let flat = matrix.flatMap { $0 }
    let source = source.bytes.assumingMemoryBound(to: Float.self)
    let target = target.mutableBytes.assumingMemoryBound(to: Float.self)
    let lanes = SIMD8<Double>.scalarCount
    withUnsafeTemporaryAllocation(of: SIMD8<Double>.self, capacity: (rows + inner) * inner) { scratch in
      let x = UnsafeMutableBufferPointer(rebasing: scratch[..<(inner * inner)])
      let half = UnsafeMutableBufferPointer(rebasing: scratch[(inner * inner)...])
      for channel in 0..<channels {
        for output in stride(from: 0, to: outputs, by: lanes) {
          let count = min(lanes, outputs - output)
          let start = channel * from.channel + output
          for place in 0..<(inner * inner) {
            var values = SIMD8<Double>()
            for lane in 0..<count { values[lane] = Double(source[start + place * from.place + lane]) }
            x[place] = values
          }
          for row in 0..<rows {
            for column in 0..<inner {
              var sum = SIMD8<Double>()
              for k in 0..<inner { sum += flat[row * inner + k] * x[k * inner + column] }
              half[row * inner + column] = sum
            }
          }
          let end = channel * to.channel + output
          for row in 0..<rows {
            for column in 0..<rows {
              var sum = SIMD8<Double>()
              for k in 0..<inner { sum += half[row * inner + k] * flat[column * inner + k] }
              let place = end + (row * rows + column) * to.place
              for lane in 0..<count { target[place + lane] = Float(sum[lane]) }
            }
          }
        }
      }
    }
  }
}
