// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Rounds weights to `bfloat16` so that their errors cancel in the results.
public enum FloatRounding {
  /// Rounds the weights of a product together, by what they were seen to multiply.
  ///
  /// - Parameters:
  ///   - axis: The axis of the result's channels.
  ///   - rounding: For rows as long as a channel has weights; others are rounded one by one.
  /// - Throws: as `Tensor.converted`.
  public static func bfloat16(_ weights: Tensor, axis: Int, _ rounding: RowRounding?) throws(ApusError)
    -> Tensor
  {
    let channels = weights.shape.indices.contains(axis) ? weights.shape[axis] : 0
    let columns = channels == 0 ? 0 : weights.count / channels
    var values = weights.floats()
    guard let rounding, rounding.columnCount == columns, channels % rounding.blocks.count == 0,
      axis == 0 || weights.rank == 2, values.allSatisfy(\.isFinite)
    else { return try weights.converted(to: .bfloat16) }
    let (rowStep, step) = axis == 0 ? (columns, 1) : (1, channels)
    for channel in 0..<channels {
      var row = (0..<columns).map { values[channel * rowStep + $0 * step] }
      rounding.round(&row, group: channel / (channels / rounding.blocks.count), to: nearest)
      for (index, value) in row.enumerated() { values[channel * rowStep + index * step] = value }
    }
    return try Tensor(values, shape: weights.shape).converted(to: .bfloat16)
  }

  @inline(__always)
  private static func nearest(_ value: Float) -> Float {
    SmallFloat.float(fromBFloat16: SmallFloat.bfloat16(value))
  }

  /// Rounds the weights of a depthwise convolution.
  ///
  /// A result of it is the sum of a window alone: nine errors do not average out as those of hundreds of channels do,
  /// and where pixels are alike (a rectifier's limit is the same everywhere) they add up. So each window is rounded as
  /// `SequentialRounding` does, its largest weights first: they have the longest steps, and the smaller ones take back
  /// what they leave.
  ///
  /// - Parameter weights: `[C, 1, window...]`; rounded one by one where windows are too large or are no windows.
  /// - Throws: as `Tensor.converted`.
  public static func depthwise(_ weights: Tensor, dilations: [Int]) throws(ApusError) -> Tensor {
    let window = Array(weights.shape.dropFirst(2))
    let dilations = dilations.isEmpty ? window.map { _ in 1 } : dilations
    let count = window.reduce(1, *)
    var values = weights.floats()
    guard values.allSatisfy(\.isFinite) else { return try weights.converted(to: .bfloat16) }
    for first in stride(from: 0, to: values.count, by: max(1, count)) {
      let order = (0..<count).sorted { a, b in
        let (left, right) = (abs(values[first + a]), abs(values[first + b]))
        return left == right ? a < b : left > right
      }
      guard
        let moments = SequentialRounding.moments(window: window, dilations: dilations, order: order),
        let rounding = SequentialRounding(moments: moments)
      else { return try weights.converted(to: .bfloat16) }
      withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { sorted in
        guard let start = sorted.baseAddress else { return }
        for (index, place) in order.enumerated() { sorted[index] = values[first + place] }
        rounding.round(start, to: nearest)
        for (index, place) in order.enumerated() { values[first + place] = sorted[index] }
      }
    }
    return try Tensor(values, shape: weights.shape).converted(to: .bfloat16)
  }
}
