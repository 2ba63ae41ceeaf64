// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCalibration
import ApusTensor

/// The means of the channels of a tensor over batches, and how far they reach.
struct ChannelMeans {
  var sums: [Double] = []
  /// The smallest and the largest number of each channel, and zero.
  var lower: [Float] = []
  var upper: [Float] = []
  var count = 0

  /// Adds a batch; sizes of a tensor of another number of channels are passed over. How far channels reach is found
  /// where that is wanted, since it takes longer than the means.
  mutating func add(_ tensor: Tensor, axis: Int, withRanges: Bool) {
    guard axis < tensor.rank, tensor.dataType == .float32 else { return }
    let channels = tensor.shape[axis]
    let inner = tensor.shape[(axis + 1)...].reduce(1, *)
    let outer = tensor.shape[..<axis].reduce(1, *)
    if sums.isEmpty {
      sums = Array(repeating: 0, count: channels)
      (lower, upper) = (Array(repeating: 0, count: channels), Array(repeating: 0, count: channels))
    }
    guard sums.count == channels else { return }
    tensor.withElements(of: Float.self) { values in
      for block in 0..<outer {
        for channel in 0..<channels {
          let start = (block * channels + channel) * inner
          var sum: Float = 0
          for index in start..<start + inner { sum += values[index] }
          sums[channel] += Double(sum)
          guard withRanges else { continue }
          var (low, high) = (lower[channel], upper[channel])
          for index in start..<start + inner {
            low = min(low, values[index])
            high = max(high, values[index])
          }
          (lower[channel], upper[channel]) = (low, high)
        }
      }
    }
    count += outer * inner
  }

  /// The means; empty when nothing was added.
  var values: [Double] { count == 0 ? [] : sums.map { $0 / Double(count) } }

  /// The ranges of the channels.
  var ranges: [ActivationRange] {
    zip(lower, upper).map { ActivationRange(lower: Double($0), upper: Double($1)) }
  }
}

/// The largest magnitudes of the channels of a tensor.
enum ChannelMagnitudes {
  /// Adds a batch; a tensor of another number of channels is passed over.
  static func add(_ tensor: Tensor, axis: Int, to largest: inout [Double]) {
    guard axis < tensor.rank, tensor.dataType == .float32 else { return }
    let channels = tensor.shape[axis]
    let inner = tensor.shape[(axis + 1)...].reduce(1, *)
    if largest.isEmpty { largest = Array(repeating: 0, count: channels) }
    guard largest.count == channels else { return }
    tensor.withElements(of: Float.self) { values in
      for block in 0..<values.count / max(1, inner) {
        let channel = block % channels
        var top: Float = 0
        for index in block * inner..<(block + 1) * inner { top = max(top, abs(values[index])) }
        if top.isFinite { largest[channel] = max(largest[channel], Double(top)) }
      }
    }
  }
}
