// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The arithmetic of a convolution, in double precision.
///
/// Operands are brought into one layout (channels last, weights `[group][kernel...][OC/g][C/g]`),
/// so that the innermost loop is a dot product of two contiguous runs; one to three spatial axes
/// are treated as three.
struct ReferenceConvolution {
  private let op: Conv
  private let type: DataType
  private let batch: Int
  private let channels: Int
  private let outChannels: Int
  private let input: [Int]
  private let window: Window
  private let outputShape: [Int]
  private let x: [Double]
  private let w: [Double]
  private let bias: [Double]?

  init(_ op: Conv, _ inputs: [RuntimeValue?]) throws(ApusError) {
    let x = try inputs.required(0)
    let w = try inputs.required(1)
    let types = InferenceInputs(types: inputs.map { $0?.type })
    guard let inferred = try op.infer(types).first?.tensor, let shape = inferred.shape else {
      throw ApusError(.typeMismatch, "a convolution of \(x.type) with \(w.type) is not possible")
    }
    _ = try Tensor.checkedCount(shape)
    self.op = op
    type = inferred.dataType
    outputShape = shape
    let rank = x.rank
    let layout = SpatialLayout(channelsLast: op.isChannelsLast, rank: rank)
    batch = x.shape[0]
    channels = x.shape[layout.channelAxis]
    outChannels = shape[layout.channelAxis]
    let kernel = op.isChannelsLast ? Array(w.shape.dropLast(2)) : Array(w.shape.dropFirst(2))
    let spatial = layout.spatial(x.shape)
    var window = try op.window(input: spatial, kernel: kernel)
    let missing = 3 - spatial.count
    func padded(_ list: [Int], _ value: Int) -> [Int] {
      Array(repeating: value, count: missing) + list
    }
    window.kernel = padded(window.kernel, 1)
    window.strides = padded(window.strides, 1)
    window.dilations = padded(window.dilations, 1)
    window.begin = padded(window.begin, 0)
    window.output = padded(window.output, 1)
    self.window = window
    input = padded(spatial, 1)
    self.x = Self.channelsLast(x, op.isChannelsLast)
    self.w = Self.weights(w, op.isChannelsLast)
    bias = try inputs.optional(2)?.doubles()
    if let bias, bias.count != outChannels {
      throw ApusError(.typeMismatch, "\(bias.count) bias values for \(outChannels) channels")
    }
  }

  /// Elements as `[N, spatial..., C]`.
  static func channelsLast(_ tensor: Tensor, _ already: Bool) -> [Double] {
    let values = tensor.doubles()
    guard !already, tensor.count > 0 else { return values }
    let channels = tensor.shape[1]
    let spatial = tensor.shape[2...].reduce(1, &*)
    var result = values
    for n in 0..<tensor.shape[0] {
      for c in 0..<channels {
        for s in 0..<spatial {
          result[(n * spatial + s) * channels + c] = values[(n * channels + c) * spatial + s]
        }
      }
    }
    return result
  }

  /// Elements as `[OC, kernel..., C/g]`.
  private static func weights(_ tensor: Tensor, _ isLast: Bool) -> [Double] {
    let values = tensor.doubles()
    guard tensor.count > 0 else { return values }
    var result = values
    if isLast {
      let out = tensor.shape[tensor.rank - 1]
      let rest = tensor.count / out
      for k in 0..<rest { for o in 0..<out { result[o * rest + k] = values[k * out + o] } }
      return result
    }
    let (out, per) = (tensor.shape[0], tensor.shape[1])
    let kernel = tensor.count / (out * per)
    for o in 0..<out {
      for c in 0..<per {
        for k in 0..<kernel {
          result[(o * kernel + k) * per + c] = values[(o * per + c) * kernel + k]
        }
      }
    }
    return result
  }

  /// The element of output channel `channel` at `position` of image `image`.
  @inline(__always)
  private func element(
    _ image: Int, _ position: (Int, Int, Int), _ channel: Int, _ x: UnsafePointer<Double>,
    _ w: UnsafePointer<Double>
  ) -> Double {
    let per = channels / op.group
    let firstChannel = channel / (outChannels / op.group) * per
    var sum = bias?[channel] ?? 0
    var weight = channel * window.kernel[0] * window.kernel[1] * window.kernel[2] * per
    for a in 0..<window.kernel[0] {
      let d = position.0 * window.strides[0] + a * window.dilations[0] - window.begin[0]
      for b in 0..<window.kernel[1] {
        let h = position.1 * window.strides[1] + b * window.dilations[1] - window.begin[1]
        for c in 0..<window.kernel[2] {
          let v = position.2 * window.strides[2] + c * window.dilations[2] - window.begin[2]
          if d < 0 || d >= input[0] || h < 0 || h >= input[1] || v < 0 || v >= input[2] {
            if op.padValue != 0 {
              for i in 0..<per { sum += Double(op.padValue) * w[weight + i] }
            }
          } else {
            let from = (((image * input[0] + d) * input[1] + h) * input[2] + v) * channels
            let left = x + (from + firstChannel)
            let right = w + weight
            // Four sums, so that additions do not wait for each other.
            var s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0
            var i = 0
            while i + 4 <= per {
              s0 += left[i] * right[i]
              s1 += left[i + 1] * right[i + 1]
              s2 += left[i + 2] * right[i + 2]
              s3 += left[i + 3] * right[i + 3]
              i += 4
            }
            while i < per {
              s0 += left[i] * right[i]
              i += 1
            }
            sum += (s0 + s1) + (s2 + s3)
          }
          weight += per
        }
      }
    }
    return sum
  }

  /// The whole result.
  func evaluate() throws(ApusError) -> Tensor {
    let spatial = window.output
    let count = try Tensor.checkedCount(outputShape)
    guard count > 0 else { return try Tensor(type, shape: outputShape) }
    var result = [Double](repeating: 0, count: count)
    let positions = spatial.reduce(1, &*)
    x.withUnsafeBufferPointer { x in
      w.withUnsafeBufferPointer { w in
        guard count > 0, let x = x.baseAddress, let w = w.baseAddress else { return }
        for image in 0..<batch {
          for position in 0..<positions {
            let place = coordinates(position)
            for channel in 0..<outChannels {
              let index =
                op.isChannelsLast
                ? (image * positions + position) * outChannels + channel
                : (image * outChannels + channel) * positions + position
              result[index] = element(image, place, channel, x, w)
            }
          }
        }
      }
    }
    return try Tensor(result, type, shape: outputShape)
  }

  private func coordinates(_ position: Int) -> (Int, Int, Int) {
    let (h, w) = (window.output[1], window.output[2])
    return (position / (h * w), position / w % h, position % w)
  }

  /// Single elements by their row-major positions.
  func samples(at indices: [Int]) throws(ApusError) -> [Double] {
    let positions = window.output.reduce(1, &*)
    let count = try Tensor.checkedCount(outputShape)
    guard indices.allSatisfy({ $0 >= 0 && $0 < count }) else {
      throw ApusError(.invalidArgument, "a sampled position is outside the result")
    }
    return x.withUnsafeBufferPointer { x in
      w.withUnsafeBufferPointer { w in
        indices.map { index in
          let (image, rest) = index.quotientAndRemainder(dividingBy: positions * outChannels)
          let position = op.isChannelsLast ? rest / outChannels : rest % positions
          let channel = op.isChannelsLast ? rest % outChannels : rest / positions
          guard let x = x.baseAddress, let w = w.baseAddress else { return 0 }
          return element(image, coordinates(position), channel, x, w)
        }
      }
    }
  }
}
