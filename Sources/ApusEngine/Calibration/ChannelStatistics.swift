// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

/// The means of the channels of a tensor over batches.
struct ChannelMeans {
  var sums: [Double] = []
  var count = 0

  /// Adds a batch; sizes of a tensor of another number of channels are passed over.
  mutating func add(_ tensor: Tensor, axis: Int) {
    guard axis < tensor.rank, tensor.dataType == .float32 else { return }
    let channels = tensor.shape[axis]
    let inner = tensor.shape[(axis + 1)...].reduce(1, *)
    let outer = tensor.shape[..<axis].reduce(1, *)
    if sums.isEmpty { sums = Array(repeating: 0, count: channels) }
    guard sums.count == channels else { return }
    tensor.withElements(of: Float.self) { values in
      for block in 0..<outer {
        for channel in 0..<channels {
          let start = (block * channels + channel) * inner
          var sum: Float = 0
          for index in start..<start + inner { sum += values[index] }
          sums[channel] += Double(sum)
        }
      }
    }
    count += outer * inner
  }

  /// The means; empty when nothing was added.
  var values: [Double] { count == 0 ? [] : sums.map { $0 / Double(count) } }
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
