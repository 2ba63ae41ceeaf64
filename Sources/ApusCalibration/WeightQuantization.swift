// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Rounding weights to signed bytes with a scale for each channel.
public enum WeightQuantization {
  /// Signed bytes and the scales of the channels along an axis.
  public struct Result: Sendable {
    public let bytes: Tensor
    public let scales: Tensor
  }

  /// Rounds a tensor.
  ///
  /// - Parameters:
  ///   - axis: The axis of the channels.
  ///   - searchesClipping: Whether each channel takes the scale with the smallest mean square error
  ///     instead of the one its largest weight needs.
  ///   - rounding: How the weights of a channel are rounded together; nil for each to the nearest step.
  public static func perChannel(
    _ weights: Tensor, axis: Int, searchesClipping: Bool = false, rounding: RowRounding? = nil
  ) throws(ApusError) -> Result {
    let channels = weights.shape[axis]
    let inner = weights.shape[(axis + 1)...].reduce(1, *)
    let values = weights.floats()
    var largest = [Float](repeating: 0, count: channels)
    for index in values.indices {
      let channel = index / inner % channels
      largest[channel] = max(largest[channel], abs(values[index]))
    }
    var scales = largest.map { max($0 / 127, .leastNormalMagnitude) }
    if searchesClipping { search(values, inner, &scales) }
    let bytes = try Tensor(.int8, shape: weights.shape)
    let target = bytes.mutableBytes.assumingMemoryBound(to: Int8.self)
    // Rows of weights: those of a channel, side by side or a column of a matrix.
    let rowCount = channels == 0 ? 0 : values.count / channels
    if let rounding, rounding.columnCount == rowCount, channels % rounding.blocks.count == 0,
      axis == 0 || weights.rank == 2
    {
      let (rowStep, step) = axis == 0 ? (rowCount, 1) : (1, channels)
      for channel in 0..<channels {
        var steps = (0..<rowCount).map { values[channel * rowStep + $0 * step] / scales[channel] }
        rounding.round(&steps, group: channel / (channels / rounding.blocks.count))
        for (index, value) in steps.enumerated() { target[channel * rowStep + index * step] = Int8(value) }
      }
    } else {
      for index in values.indices {
        target[index] = Int8(rounded(values[index], scales[index / inner % channels]))
      }
    }
    return Result(bytes: bytes, scales: try Tensor(scales, shape: [channels]))
  }

  @inline(__always)
  private static func rounded(_ value: Float, _ scale: Float) -> Float {
    max(-127, min(127, (value / scale).rounded(.toNearestOrEven)))
  }

  /// Tries smaller scales, down to 60 % of the largest weight's.
  private static func search(_ values: [Float], _ inner: Int, _ scales: inout [Float]) {
    let channels = scales.count
    let full = scales
    var best = [Float](repeating: .infinity, count: channels)
    for step in 0...20 {
      let share = 1 - Float(step) * 0.02
      var errors = [Float](repeating: 0, count: channels)
      for index in values.indices {
        let channel = index / inner % channels
        let scale = full[channel] * share
        let error = values[index] - rounded(values[index], scale) * scale
        errors[channel] += error * error
      }
      for channel in 0..<channels where errors[channel] < best[channel] {
        best[channel] = errors[channel]
        scales[channel] = full[channel] * share
      }
    }
  }
}
