// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The sizes of a channels-last transposed convolution: input `[batch, input..., inChannels]`, result
/// `[batch, output..., outChannels]`, three spatial axes of which the first may be of size one.
package struct TransposedConvShape: Hashable, Sendable {
  package var batch: Int
  package var input: [Int]
  package var output: [Int]
  package var inChannels: Int
  package var outChannels: Int
  package var kernel: [Int]
  package var strides: [Int]
  package var dilations: [Int]
  /// What is cut off before each axis.
  package var begin: [Int]
  package var groups: Int

  /// Collects the sizes; missing leading axes are added.
  package init(
    batch: Int, input: [Int], output: [Int], channels: (Int, Int), kernel: [Int], strides: [Int],
    dilations: [Int], begin: [Int], groups: Int
  ) {
    func three(_ values: [Int], _ missing: Int) -> [Int] {
      Array(repeating: missing, count: max(0, 3 - values.count)) + values
    }
    self.batch = batch
    self.input = three(input, 1)
    self.output = three(output, 1)
    (inChannels, outChannels) = channels
    self.kernel = three(kernel, 1)
    self.strides = three(strides, 1)
    self.dilations = three(dilations, 1)
    self.begin = three(begin, 0)
    self.groups = groups
  }

  /// The results of an axis whose positions have one remainder modulo the stride: result `first + s * j`
  /// reads the input at `source + j` and, for each tap of the phase but the first, `dilation` further on.
  struct AxisPhase {
    var first: Int
    var count: Int
    /// Which part of the weights it has.
    var phase: Int
    var taps: Int
    var source: Int
  }

  /// The phases of an axis in the order of their first results; those without results are left out.
  func phases(_ axis: Int) -> [AxisPhase] {
    let (stride, dilation) = (strides[axis], dilations[axis])
    return (0..<min(stride, output[axis])).compactMap { first in
      let place = first + begin[axis]
      // Strides and dilations share no factor, so one phase of the kernel fits.
      guard let phase = (0..<stride).first(where: { (place - dilation * $0) % stride == 0 }) else {
        return nil
      }
      let taps = (kernel[axis] - phase + stride - 1) / stride
      return AxisPhase(
        first: first, count: (output[axis] - first + stride - 1) / stride, phase: phase, taps: taps,
        source: (place - dilation * phase) / stride - dilation * (taps - 1))
    }
  }

  /// The positions of an axis that are read, from which to before which; outside the input are zeros.
  func sources(_ axis: Int) -> Range<Int> {
    let phases = phases(axis)
    let low = phases.map(\.source).min() ?? 0
    let high = phases.map { $0.source + $0.count + dilations[axis] * ($0.taps - 1) }.max() ?? 1
    return low..<max(high, low + 1)
  }

  /// Taps of the phase that has most of them.
  package var taps: Int {
    (0..<3).reduce(1) { $0 * ((kernel[$1] + strides[$1] - 1) / strides[$1]) }
  }
  package var phaseCount: Int { strides.reduce(1, *) }

  /// Whether all sizes are positive and the groups divide the channels.
  package var isValid: Bool {
    let sizes =
      [batch, inChannels, outChannels, groups] + input + output + kernel + strides + dilations
    return sizes.allSatisfy { $0 > 0 } && input.count == 3 && output.count == 3
      && inChannels % groups == 0 && outChannels % groups == 0
      && zip(kernel, strides).allSatisfy { $0 >= $1 }
  }
}
