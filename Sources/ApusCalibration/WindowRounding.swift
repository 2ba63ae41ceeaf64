// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

extension RowRounding {
  /// Rounds the windows of a convolution's weights `[O, I, window...]` without data.
  ///
  /// - Parameter dilations: Empty for windows of neighbours.
  /// - Returns: As `SequentialRounding(window:dilations:)`; nil for weights without windows.
  public init?(windowsOf weights: Tensor, dilations: [Int]) {
    guard weights.rank > 2 else { return nil }
    let window = Array(weights.shape.dropFirst(2))
    guard
      let rounding = SequentialRounding(
        window: window, dilations: dilations.isEmpty ? window.map { _ in 1 } : dilations)
    else { return nil }
    self.init(rounding, columnCount: weights.shape.dropFirst().reduce(1, *))
  }
}

extension SequentialRounding {
  /// Larger windows are rounded weight by weight.
  static let largestWindow = 121
  private static let correlation = 0.8
  /// Uncorrelated noise, which keeps the matrix well conditioned.
  private static let noise = 1e-3

  /// Plans the rounding of a convolution's window without data: pixels at distance `d` are taken to have a
  /// correlation of `0.8^d`.
  ///
  /// - Returns: nil for windows of one weight, and very large ones.
  public init?(window: [Int], dilations: [Int]) {
    let count = window.reduce(1, *)
    guard let moments = Self.moments(window: window, dilations: dilations, order: Array(0..<count)) else {
      return nil
    }
    self.init(moments: moments)
  }

  /// The moments that a window is taken to have, its places in an order; nil for windows of one weight, and very
  /// large ones.
  static func moments(window: [Int], dilations: [Int], order: [Int]) -> [Double]? {
    let count = window.reduce(1, *)
    guard count > 1, count <= Self.largestWindow, dilations.count == window.count else { return nil }
    let places = order.map { index -> [Int] in
      var rest = index
      return zip(window, dilations).reversed().map { size, dilation in
        defer { rest /= size }
        return rest % size * dilation
      }
    }
    var moments: [Double] = []
    moments.reserveCapacity(count * count)
    for (k, a) in places.enumerated() {
      for (j, b) in places.enumerated() {
        let distance = zip(a, b).reduce(0) { $0 + abs($1.0 - $1.1) }
        let power = (0..<min(distance, 64)).reduce(1.0) { power, _ in power * Self.correlation }
        moments.append(power + (k == j ? Self.noise : 0))
      }
    }
    return moments
  }
}
