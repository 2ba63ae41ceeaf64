// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Transformed weights `[channels, places, outputs]` as 16-bit integers and a scale for every place and
/// output.
///
/// Scales are as small as they can be such that no sum over `run` channels, of products with the transform
/// of any bytes, leaves 32 bits. With runs of up to `longestRun` channels the weights that were bytes can
/// be restored exactly: undoing the transform, the errors of rounding, half a scale at most in each
/// place, add up to less than 0.3. (Place (1, 1) counts most: its numbers are at most 128 / 4, its scale
/// so at most 64 * 32 * 17340 / 2^31 = 0.0166, and its four like in the inverse's largest row come with a
/// factor of 9 each, which makes 36 / 2 * 0.0166 = 0.298.)
struct ScaledWeights {
  /// The longest run for which restoring is proven to be exact.
  static let longestRun = 64

  let integers: Tensor
  /// `[places, outputs]`
  let scales: [Float]

  /// Chooses scales and rounds.
  init(_ numbers: Tensor, m: Int, run: Int) throws(ApusError) {
    let (channels, places, outputs) = (numbers.shape[0], numbers.shape[1], numbers.shape[2])
    let rowCount = places * outputs
    let integers = try Tensor(.int16, shape: numbers.shape)
    let source = numbers.bytes.assumingMemoryBound(to: Float.self)
    var largest = [Float](repeating: 0, count: rowCount)
    var sums = [Float](repeating: 0, count: rowCount)
    var largestSums = sums
    for channel in 0..<channels {
      for index in 0..<rowCount {
        let magnitude = abs(source[channel * rowCount + index])
        largest[index] = max(largest[index], magnitude)
        sums[index] += magnitude
        largestSums[index] = max(largestSums[index], sums[index])
      }
      if channel % run == run - 1 { for index in 0..<rowCount { sums[index] = 0 } }
    }
    let bounds = WinogradWeights.largestInputs(m)
    scales = (0..<rowCount).map { index in
      // Rounding adds up to a half to every factor.
      let limit = Float(Int32.max) / Float(bounds[index / outputs]) - Float(run)
      let scale = max(largest[index] / 32767, largestSums[index] / limit)
      return scale > 0 ? scale * (1 + 1e-5) : 1
    }
    let target = integers.mutableBytes.assumingMemoryBound(to: Int16.self)
    for channel in 0..<channels {
      for index in 0..<rowCount {
        let place = channel * rowCount + index
        target[place] = Int16((source[place] / scales[index]).rounded())
      }
    }
    self.integers = integers
  }

  /// What was stored. `scales` are the bytes of numbers of single precision.
  init(integers: Tensor, scales: UnsafeRawBufferPointer) {
    self.integers = integers
    self.scales = (0..<scales.count / 4).map { index in
      scales.loadUnaligned(fromByteOffset: 4 * index, as: Float.self)
    }
  }

  /// The numbers that the integers stand for.
  func numbers() throws(ApusError) -> Tensor {
    let result = try Tensor(.float32, shape: integers.shape)
    let source = integers.bytes.assumingMemoryBound(to: Int16.self)
    let target = result.mutableBytes.assumingMemoryBound(to: Float.self)
    guard !scales.isEmpty else { return result }
    for index in 0..<integers.count {
      target[index] = Float(source[index]) * scales[index % scales.count]
    }
    return result
  }
}
