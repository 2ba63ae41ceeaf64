// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The arithmetic of a transposed convolution, in double precision, seen from its results: an element
/// collects the products of those input elements whose kernels reach it.
///
/// Operands are brought into one layout (channels last, weights `[OC, kernel..., C/g]`), so that the
/// innermost loop is a dot product of contiguous runs; one to three spatial axes are treated as three.
struct ReferenceTransposedConvolution {
  private let type: DataType
  private let shape: [Int]
  private let isChannelsLast: Bool
  private let group: Int
  private let channels: Int
  private let outChannels: Int
  private let input: [Int]
  private let window: Window
  private let x: [Double]
  private let w: [Double]
  private let bias: [Double]?

  /// Collects the operands; `window` holds the result's spatial sizes, `weights` elements
  /// `[OC, kernel..., C/g]`.
  ///
  /// - Throws: `type-mismatch` for a result of unknown shape, `resource-limit` for one too large.
  init(
    x: Tensor, bias: Tensor?, result: TensorType, channelsLast: Bool, group: Int, window: Window,
    weights: [Double]
  ) throws(ApusError) {
    guard let shape = result.shape else {
      throw ApusError(.typeMismatch, "a transposed convolution of unknown sizes")
    }
    _ = try Tensor.checkedCount(shape)
    let layout = SpatialLayout(channelsLast: channelsLast, rank: x.rank)
    let missing = 5 - x.rank
    func padded(_ list: [Int], _ value: Int) -> [Int] {
      Array(repeating: value, count: missing) + list
    }
    var window = window
    window.kernel = padded(window.kernel, 1)
    window.strides = padded(window.strides, 1)
    window.dilations = padded(window.dilations, 1)
    window.begin = padded(window.begin, 0)
    window.output = padded(window.output, 1)
    self.window = window
    type = result.dataType
    self.shape = shape
    isChannelsLast = channelsLast
    self.group = group
    channels = x.shape[layout.channelAxis]
    outChannels = shape[layout.channelAxis]
    input = padded(layout.spatial(x.shape), 1)
    self.x = ReferenceConvolution.channelsLast(x, channelsLast)
    w = weights
    self.bias = bias?.doubles()
  }

  /// The input position that meets `tap` at output position `place` along an axis; nil for none.
  @inline(__always)
  private func source(_ axis: Int, _ place: Int, _ tap: Int) -> Int? {
    let distance = place + window.begin[axis] - tap * window.dilations[axis]
    guard distance >= 0 else { return nil }
    let (position, rest) = distance.quotientAndRemainder(dividingBy: window.strides[axis])
    return rest == 0 && position < input[axis] ? position : nil
  }

  /// The element of output channel `channel` at the spatial position with this number.
  private func element(
    _ image: Int, _ position: Int, _ channel: Int, _ x: UnsafePointer<Double>,
    _ w: UnsafePointer<Double>
  ) -> Double {
    let (height, width) = (window.output[1], window.output[2])
    let per = channels / group
    let firstChannel = channel / (outChannels / group) * per
    var sum = bias?[channel] ?? 0
    for a in 0..<window.kernel[0] {
      guard let d = source(0, position / (height * width), a) else { continue }
      for b in 0..<window.kernel[1] {
        guard let h = source(1, position / width % height, b) else { continue }
        for c in 0..<window.kernel[2] {
          guard let v = source(2, position % width, c) else { continue }
          let left =
            x + ((((image * input[0] + d) * input[1] + h) * input[2] + v) * channels + firstChannel)
          let tap = (a * window.kernel[1] + b) * window.kernel[2] + c
          let right =
            w + (channel * window.kernel[0] * window.kernel[1] * window.kernel[2] + tap) * per
          for i in 0..<per { sum += left[i] * right[i] }
        }
      }
    }
    return sum
  }

  /// The whole result.
  func evaluate() throws(ApusError) -> Tensor {
    try Tensor(samples(at: Array(0..<Tensor.checkedCount(shape))), type, shape: shape)
  }

  /// Single elements by their row-major positions.
  ///
  /// - Throws: `invalid-argument` for positions outside the result.
  func samples(at indices: [Int]) throws(ApusError) -> [Double] {
    let positions = window.output.reduce(1, &*)
    let count = try Tensor.checkedCount(shape)
    guard indices.allSatisfy({ $0 >= 0 && $0 < count }) else {
      throw ApusError(.invalidArgument, "a sampled position is outside the result")
    }
    return x.withUnsafeBufferPointer { x in
      w.withUnsafeBufferPointer { w in
        indices.map { index in
          let (image, rest) = index.quotientAndRemainder(dividingBy: positions * outChannels)
          let position = isChannelsLast ? rest / outChannels : rest % positions
          let channel = isChannelsLast ? rest % outChannels : rest / positions
          // Without input or weights there is only the bias.
          guard let x = x.baseAddress, let w = w.baseAddress else { return bias?[channel] ?? 0 }
          return element(image, position, channel, x, w)
        }
      }
    }
  }
}
