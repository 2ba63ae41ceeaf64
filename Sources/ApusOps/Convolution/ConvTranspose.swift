// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Transposed convolution (ONNX `ConvTranspose`): operands X `[N, C, spatial...]`, W
/// `[C, OC/group, kernel...]` and an optional bias `[OC]`. Every input element adds its multiple of
/// the kernel to the result. One to three spatial axes, channels first.
public struct ConvTranspose: CostedOperator, TolerantOperator {
  public static let name = "ConvTranspose"
  public var strides: [Int]
  public var dilations: [Int]
  /// What is cut off before every axis, then after every axis.
  public var pads: [Int]
  public var group: Int
  public var autoPad: AutoPad
  /// Extra elements at the end of every axis.
  public var outputPadding: [Int]
  /// The result's spatial sizes, from which the pads then follow; empty when the pads decide.
  public var outputShape: [Int]

  /// Creates a transposed convolution; empty lists stand for ones and zeros.
  public init(
    strides: [Int] = [], dilations: [Int] = [], pads: [Int] = [], group: Int = 1,
    autoPad: AutoPad = .notset, outputPadding: [Int] = [], outputShape: [Int] = []
  ) {
    self.strides = strides
    self.dilations = dilations
    self.pads = pads
    self.group = group
    self.autoPad = autoPad
    self.outputPadding = outputPadding
    self.outputShape = outputShape
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    strides = try attributes.ints("strides", [])
    dilations = try attributes.ints("dilations", [])
    pads = try attributes.ints("pads", [])
    group = try attributes.int("group", 1)
    autoPad = try attributes.choice("auto_pad", AutoPad.notset)
    outputPadding = try attributes.ints("output_padding", [])
    outputShape = try attributes.ints("output_shape", [])
  }

  public var attributes: Attributes {
    [
      "strides": .ints(strides), "dilations": .ints(dilations), "pads": .ints(pads),
      "group": .int(group), "auto_pad": .string(autoPad.rawValue),
      "output_padding": .ints(outputPadding), "output_shape": .ints(outputShape),
    ]
  }

  /// The window that walks over the result, one step for every input element; `output` holds the
  /// result's sizes.
  ///
  /// - Throws: `invalid-attribute` for counts or sizes that do not fit the input.
  public func window(input: [Int], kernel: [Int]) throws(ApusError) -> Window {
    let rank = input.count
    // Checks the lists and fills in the defaults.
    var window = try Window(
      input: input, kernel: kernel, strides: strides, dilations: dilations, pads: pads,
      autoPad: .notset)
    let extra = outputPadding.isEmpty ? Array(repeating: 0, count: rank) : outputPadding
    let limit = 1 << 31
    guard extra.count == rank, extra.allSatisfy({ $0 >= 0 && $0 < limit }),
      outputShape.isEmpty || outputShape.count >= rank,
      outputShape.allSatisfy({ $0 >= 0 && $0 < limit })
    else {
      throw ApusError(
        .invalidAttribute,
        "output padding \(extra) or output shape \(outputShape) do not fit \(rank) spatial axes")
    }
    for axis in 0..<rank {
      let extent = (window.kernel[axis] - 1) * window.dilations[axis] + 1
      let steps = max(0, input[axis] - 1).multipliedReportingOverflow(by: window.strides[axis])
      let sum = steps.partialValue.addingReportingOverflow(extent + extra[axis])
      guard !steps.overflow, !sum.overflow, sum.partialValue < 1 << 62 else {
        throw ApusError(.resourceLimit, "the result's axis \(axis) is too long")
      }
      let whole = input[axis] == 0 ? 0 : sum.partialValue
      var wanted: Int?
      if !outputShape.isEmpty {
        wanted = outputShape[outputShape.count - rank + axis]
      } else if autoPad == .sameUpper || autoPad == .sameLower {
        wanted = input[axis].multipliedReportingOverflow(by: window.strides[axis]).partialValue
      }
      if let wanted {
        let total = max(0, whole - wanted)
        let half = total / 2
        window.begin[axis] = autoPad == .sameUpper ? half : total - half
        window.end[axis] = total - window.begin[axis]
        window.output[axis] = wanted
        continue
      }
      if autoPad == .valid { (window.begin[axis], window.end[axis]) = (0, 0) }
      window.output[axis] = max(0, whole - window.begin[axis] - window.end[axis])
    }
    return window
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let w = try inputs.tensor(1)
    guard x.dataType == w.dataType, x.dataType.isFloat else {
      throw ApusError(.typeMismatch, "input is \(x.dataType) but weights are \(w.dataType)")
    }
    try inputs.requireNumbers(ifGiven: 2)
    guard let xDims = x.dims, let wDims = w.dims else { return [typed(x.dataType, nil)] }
    guard xDims.count == wDims.count, xDims.count >= 3, xDims.count <= 5 else {
      throw ApusError(
        .typeMismatch, "input \(x) and weights \(w) must have the same rank, three to five")
    }
    guard group > 0 else {
      throw ApusError(.invalidAttribute, "'group' is \(group); it must be positive")
    }
    if let c = xDims[1].value, let rows = wDims[0].value, c != rows || c % group != 0 {
      throw ApusError(
        .typeMismatch, "the input has \(c) channels, the weights are for \(rows) in \(group) groups"
      )
    }
    let product = wDims[1].value.map { $0.multipliedReportingOverflow(by: group) }
    if product?.overflow == true { throw ApusError(.invalidAttribute, "'group' is \(group)") }
    let channels = product.map { Dim($0.partialValue) } ?? wDims[1] * Dim(group)
    if inputs.has(2), let bias = try inputs.tensor(2).shape, let channels = channels.value,
      bias != [channels]
    {
      throw ApusError(.typeMismatch, "a bias of shape \(bias) for \(channels) channels")
    }
    let kernel = wDims.dropFirst(2).map(\.value)
    let spatial = try WindowInference.output(Array(xDims[2...]), kernel: kernel, inputs) {
      (sizes, extents) throws(ApusError) in try window(input: sizes, kernel: extents)
    }
    return [typed(x.dataType, [xDims[0], channels] + spatial)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard inputs.count > 1, let x = inputs[0]?.shape, let w = inputs[1]?.shape, let first = w.first
    else { return 0 }
    let perInput = w.reduce(2.0) { $0 * Double($1) } / Double(max(1, first))
    return perInput * x.reduce(1.0) { $0 * Double($1) }
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let w = try inputs.required(1)
    let bias = try inputs.optional(2)?.doubles()
    guard let shape = inferred.first?.tensor?.shape else {
      throw ApusError(.typeMismatch, "no transposed convolution of \(x.type) with \(w.type)")
    }
    let count = try Tensor.checkedCount(shape)
    guard count > 0 else { return [.tensor(try Tensor(x.dataType, shape: shape))] }
    let resolved = try window(input: Array(x.shape[2...]), kernel: Array(w.shape[2...]))
    let scatter = TransposedScatter(x: x, w: w, window: resolved, group: group, shape: shape)
    let channels = shape[1]
    let positions = shape[2...].reduce(1, &*)
    // Sums are collected channels last, where the inner loop is contiguous.
    let sums = try scatter.sums(count: count)
    var result = [Double](repeating: 0, count: count)
    for n in 0..<shape[0] {
      for c in 0..<channels {
        let offset = bias?[c] ?? 0
        for s in 0..<positions {
          result[(n * channels + c) * positions + s] =
            sums[(n * positions + s) * channels + c] + offset
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }
}

/// The scattering loop of a transposed convolution, with spatial axes made three.
private struct TransposedScatter {
  let x: Tensor
  let w: Tensor
  let window: Window
  let group: Int
  let shape: [Int]

  func sums(count: Int) throws(ApusError) -> [Double] {
    var sums = [Double](repeating: 0, count: count)
    guard count > 0, x.count > 0, w.count > 0 else { return sums }
    let (batch, channels, outChannels) = (shape[0], x.shape[1], shape[1])
    let perGroup = outChannels / group
    let inPerGroup = channels / group
    let missing = 5 - x.rank
    func padded(_ list: [Int], _ value: Int) -> [Int] {
      Array(repeating: value, count: missing) + list
    }
    let input = padded(Array(x.shape[2...]), 1)
    let kernel = padded(window.kernel, 1)
    let strides = padded(window.strides, 1)
    let dilations = padded(window.dilations, 1)
    let begin = padded(window.begin, 0)
    let output = padded(window.output, 1)
    let taps = kernel.reduce(1, &*)
    let positions = input.reduce(1, &*)
    // [C, tap, OC/g]
    let given = w.doubles()
    var weights = given
    for c in 0..<channels {
      for o in 0..<perGroup {
        for t in 0..<taps {
          weights[(c * taps + t) * perGroup + o] = given[(c * perGroup + o) * taps + t]
        }
      }
    }
    let values = x.doubles()
    sums.withUnsafeMutableBufferPointer { sums in
      weights.withUnsafeBufferPointer { weights in
        for n in 0..<batch {
          for position in 0..<positions {
            let place = [
              position / (input[1] * input[2]), position / input[2] % input[1],
              position % input[2],
            ]
            for tap in 0..<taps {
              let a =
                place[0] * strides[0] + tap / (kernel[1] * kernel[2]) * dilations[0] - begin[0]
              let b = place[1] * strides[1] + tap / kernel[2] % kernel[1] * dilations[1] - begin[1]
              let c = place[2] * strides[2] + tap % kernel[2] * dilations[2] - begin[2]
              guard a >= 0, a < output[0], b >= 0, b < output[1], c >= 0, c < output[2] else {
                continue
              }
              let at = (((n * output[0] + a) * output[1] + b) * output[2] + c) * outChannels
              for channel in 0..<channels {
                let factor = values[(n * channels + channel) * positions + position]
                let target = at + channel / inPerGroup * perGroup
                let source = (channel * taps + tap) * perGroup
                for o in 0..<perGroup { sums[target + o] += factor * weights[source + o] }
              }
            }
          }
        }
      }
    }
    return sums
  }
}
