// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The order in which a convolution's weights are rounded and what each owes to those before it.
///
/// Neighbouring pixels are alike, so rounding errors of neighbouring weights add up where they have the
/// same sign. Weights of a window are therefore rounded one after the other, and the error of each is
/// taken back by the rest before these are rounded, in the proportions that leave the smallest expected
/// square error of the result when pixels at distance `d` have a correlation of `0.8^d`. This is the
/// sequential rounding of E. Frantar et al., "GPTQ" (2022), after B. Hassibi's Optimal Brain Surgeon, with
/// that prior in place of measured second moments, so it needs no data.
public struct WindowRounding: Sendable {
  /// Larger windows are rounded weight by weight.
  private static let largestWindow = 121
  private static let correlation = 0.8
  /// Uncorrelated noise, which keeps the matrix well conditioned.
  private static let noise = 1e-3

  /// The number of weights.
  public let count: Int
  /// `[k][j]`: the share of the error of weight k that weight j takes back, for j > k.
  private let shares: [[Float]]

  /// Plans a window of these sizes with this dilation along each axis; nil for windows of one weight, and
  /// very large ones.
  public init?(window: [Int], dilations: [Int]) {
    let count = window.reduce(1, *)
    guard count > 1, count <= Self.largestWindow, dilations.count == window.count else { return nil }
    self.count = count
    let places = (0..<count).map { index -> [Int] in
      var rest = index
      return zip(window, dilations).reversed().map { size, dilation in
        defer { rest /= size }
        return rest % size * dilation
      }
    }
    var moments = [[Double]](repeating: [Double](repeating: 0, count: count), count: count)
    for (k, a) in places.enumerated() {
      for (j, b) in places.enumerated() {
        let distance = zip(a, b).reduce(0) { $0 + abs($1.0 - $1.1) }
        var power = 1.0
        for _ in 0..<min(distance, 64) { power *= Self.correlation }
        moments[k][j] = power + (k == j ? Self.noise : 0)
      }
    }
    shares = Self.shares(moments)
  }

  /// Rows of the upper triangular `U` with `M^-1 = U^T U`, divided by their diagonal.
  private static func shares(_ moments: [[Double]]) -> [[Float]] {
    let count = moments.count
    let inverse = inverted(moments)
    var upper = [[Double]](repeating: [Double](repeating: 0, count: count), count: count)
    for k in 0..<count {
      for j in k..<count {
        var sum = inverse[k][j]
        for i in 0..<k { sum -= upper[i][k] * upper[i][j] }
        upper[k][j] = j == k ? max(sum, 1e-12).squareRoot() : sum / upper[k][k]
      }
    }
    return (0..<count).map { k in (0..<count).map { Float(upper[k][$0] / upper[k][k]) } }
  }

  /// The inverse of a positive definite matrix by elimination.
  private static func inverted(_ matrix: [[Double]]) -> [[Double]] {
    let count = matrix.count
    var left = matrix
    var right = (0..<count).map { row in (0..<count).map { $0 == row ? 1.0 : 0 } }
    for k in 0..<count {
      let pivot = left[k][k]
      for j in 0..<count {
        left[k][j] /= pivot
        right[k][j] /= pivot
      }
      for row in 0..<count where row != k && left[row][k] != 0 {
        let factor = left[row][k]
        for j in 0..<count {
          left[row][j] -= factor * left[k][j]
          right[row][j] -= factor * right[k][j]
        }
      }
    }
    return right
  }

  /// Rounds the weights of one window, in steps of a scale, to whole steps from -127 to 127.
  func round(_ steps: inout [Float]) {
    for k in 0..<count {
      let rounded = max(-127, min(127, steps[k].rounded(.toNearestOrEven)))
      let error = steps[k] - rounded
      steps[k] = rounded
      guard error != 0 else { continue }
      for j in (k + 1)..<max(k + 1, count) { steps[j] -= error * shares[k][j] }
    }
  }
}
