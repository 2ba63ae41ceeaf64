// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Convolution (ONNX `Conv`): operands X, W and an optional bias B.
///
/// Channels first: X `[N, C, spatial...]`, W `[OC, C/group, kernel...]`. Channels last: X
/// `[N, spatial..., C]`, W `[kernel..., C/group, OC]`. One to three spatial axes; empty attribute
/// lists stand for ones and zeros.
public struct Conv: AnchorOperator, CostedOperator, TolerantOperator, SampledOperator,
  ChannelsLastConvertible
{
  public static let name = "Conv"
  public var strides: [Int]
  public var dilations: [Int]
  /// Padding before every axis, then after every axis.
  public var pads: [Int]
  public var group: Int
  public var autoPad: AutoPad
  public var isChannelsLast: Bool
  /// The type of the sums and the result, when it is not that of the operands; these may then differ.
  public var sumType: DataType?
  /// What stands around the input: the zero point of quantised elements.
  public var padValue: Int

  /// Creates a convolution.
  public init(
    strides: [Int] = [], dilations: [Int] = [], pads: [Int] = [], group: Int = 1,
    autoPad: AutoPad = .notset, channelsLast: Bool = false, sumType: DataType? = nil,
    padValue: Int = 0
  ) {
    self.sumType = sumType
    self.padValue = padValue
    self.strides = strides
    self.dilations = dilations
    self.pads = pads
    self.group = group
    self.autoPad = autoPad
    isChannelsLast = channelsLast
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    strides = try attributes.ints("strides", [])
    dilations = try attributes.ints("dilations", [])
    pads = try attributes.ints("pads", [])
    group = try attributes.int("group", 1)
    autoPad = try attributes.choice("auto_pad", AutoPad.notset)
    isChannelsLast = try attributes.bool("channels_last", false)
    sumType = try SumType.read(&attributes)
    padValue = try attributes.int("pad_value", 0)
  }

  public var attributes: Attributes {
    var all = windowAttributes
    if let sumType { all["sum_type"] = .type(sumType) }
    if padValue != 0 { all["pad_value"] = .int(padValue) }
    return all
  }

  private var windowAttributes: Attributes {
    [
      "strides": .ints(strides), "dilations": .ints(dilations), "pads": .ints(pads),
      "group": .int(group), "auto_pad": .string(autoPad.rawValue),
      "channels_last": .bool(isChannelsLast),
    ]
  }

  public func ownsEpilogue(_ inputs: [TensorType?]) -> Bool { isChannelsLast }

  public func channelsLast() -> (any Operator)? {
    var copy = self
    copy.isChannelsLast = true
    return copy
  }

  public func weightPermutations(rank: Int) -> [Int: [Int]] {
    [1: Array(2..<rank) + [1, 0]]
  }

  /// The window over an input of these spatial sizes.
  public func window(input: [Int], kernel: [Int]) throws(ApusError) -> Window {
    try Window(
      input: input, kernel: kernel, strides: strides, dilations: dilations, pads: pads,
      autoPad: autoPad)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let w = try inputs.tensor(1)
    let type = try SumType.check(x.dataType, w.dataType, sumType)
    if sumType == nil { try inputs.requireFloat(0) }
    try inputs.requireNumbers(ifGiven: 2)
    guard let xDims = x.dims, let wDims = w.dims else { return [.tensor(TensorType(type, nil))] }
    guard xDims.count == wDims.count, xDims.count >= 3, xDims.count <= 5 else {
      throw ApusError(
        .typeMismatch,
        "input \(x) and weights \(w) must have the same rank, three to five")
    }
    let layout = SpatialLayout(channelsLast: isChannelsLast, rank: xDims.count)
    let channels = xDims[layout.channelAxis]
    let perGroup = isChannelsLast ? wDims[wDims.count - 2] : wDims[1]
    let outChannels = isChannelsLast ? wDims[wDims.count - 1] : wDims[0]
    try checkGroups(channels, perGroup, outChannels)
    let kernel = isChannelsLast ? Array(wDims.dropLast(2)) : Array(wDims.dropFirst(2))
    let spatial = try WindowInference.output(
      layout.spatial(xDims), kernel: kernel.map(\.value), inputs
    ) { (sizes, extents) throws(ApusError) in try window(input: sizes, kernel: extents) }
    return [typed(type, layout.shape(xDims[0], outChannels, spatial))]
  }

  private func checkGroups(_ channels: Dim, _ perGroup: Dim, _ outChannels: Dim) throws(ApusError) {
    guard group > 0 else {
      throw ApusError(.invalidAttribute, "'group' is \(group); it must be positive")
    }
    if let c = channels.value {
      guard c % group == 0 else {
        throw ApusError(
          .invalidAttribute, "'group' is \(group) but the input has \(c) channels; it must divide \(c)")
      }
      if let per = perGroup.value, per != c / group {
        throw ApusError(
          .typeMismatch,
          "the input has \(c) channels in \(group) groups, the weights are for \(per) channels a group")
      }
    }
    if let out = outChannels.value, out % group != 0 {
      throw ApusError(.invalidAttribute, "'group' is \(group) but there are \(out) output channels")
    }
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard let w = inputs.count > 1 ? inputs[1]?.shape : nil, let y = outputs.first?.shape else {
      return 0
    }
    let outChannels = isChannelsLast ? w.last ?? 1 : w.first ?? 1
    let perOutput = w.reduce(1.0) { $0 * Double($1) } / Double(max(1, outChannels))
    return 2 * perOutput * y.reduce(1.0) { $0 * Double($1) }
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    // Kernels may transform what is narrow and store it in its own type again, half a step off: weights in half
    // precision, both sides where they are BF16 numbers.
    let weights = inputs.count > 1 ? inputs[1]?.dataType : nil
    if type == .float32, weights == .float16 { return 5e-4 }
    if type == .bfloat16, weights == .bfloat16 { return 8e-3 }
    return type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let problem = try ReferenceConvolution(self, inputs)
    return [.tensor(try problem.evaluate())]
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    let problem = try ReferenceConvolution(self, inputs.map { $0.map { .tensor($0) } })
    return try problem.samples(at: linearIndices)
  }
}

extension Conv: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
