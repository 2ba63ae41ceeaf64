// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Transposed convolution (ONNX `ConvTranspose`): operands X `[N, C, spatial...]`, W
/// `[C, OC/group, kernel...]` and an optional bias `[OC]`. Every input element adds its multiple of
/// the kernel to the result. One to three spatial axes, channels first.
public struct ConvTranspose: CostedOperator, TolerantOperator, SampledOperator {
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
  /// The type of the sums and the result, when it is not that of the operands.
  public var sumType: DataType?

  /// Creates a transposed convolution; empty lists stand for ones and zeros.
  public init(
    strides: [Int] = [], dilations: [Int] = [], pads: [Int] = [], group: Int = 1,
    autoPad: AutoPad = .notset, outputPadding: [Int] = [], outputShape: [Int] = [],
    sumType: DataType? = nil
  ) {
    self.sumType = sumType
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
    sumType = try SumType.read(&attributes)
  }

  public var attributes: Attributes {
    var all = windowAttributes
    if let sumType { all["sum_type"] = .type(sumType) }
    return all
  }

  private var windowAttributes: Attributes {
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
    let type = try SumType.check(x.dataType, w.dataType, sumType)
    try inputs.requireFloat(0)
    try inputs.requireNumbers(ifGiven: 2)
    guard let xDims = x.dims, let wDims = w.dims else { return [typed(type, nil)] }
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
    return [typed(type, [xDims[0], channels] + spatial)]
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
    [.tensor(try reference(inputs.map { $0?.tensor }).evaluate())]
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    try reference(inputs).samples(at: linearIndices)
  }

  private func reference(_ inputs: [Tensor?]) throws(ApusError) -> ReferenceTransposedConvolution {
    let values = inputs.map { $0.map { RuntimeValue.tensor($0) } }
    let inferred = try infer(InferenceInputs(types: values.map { $0?.type }))
    let x = try values.required(0)
    let w = try values.required(1)
    guard let result = inferred.first?.tensor, result.shape != nil else {
      throw ApusError(.typeMismatch, "no transposed convolution of \(x.type) with \(w.type)")
    }
    return try ReferenceTransposedConvolution(
      x: x, bias: values.optional(2), result: result, channelsLast: false, group: group,
      window: window(input: Array(x.shape[2...]), kernel: Array(w.shape[2...])),
      weights: Self.byOutput(w, group))
  }

  /// Elements `[C, OC/g, kernel...]` as `[OC, kernel..., C/g]`.
  private static func byOutput(_ weights: Tensor, _ group: Int) -> [Double] {
    let values = weights.doubles()
    guard weights.count > 0 else { return values }
    let (perGroup, inPerGroup) = (weights.shape[1], weights.shape[0] / group)
    let taps = weights.count / (weights.shape[0] * perGroup)
    var result = values
    for c in 0..<weights.shape[0] {
      for o in 0..<perGroup {
        let output = c / inPerGroup * perGroup + o
        for t in 0..<taps {
          result[(output * taps + t) * inPerGroup + c % inPerGroup] =
            values[(c * perGroup + o) * taps + t]
        }
      }
    }
    return result
  }
}

extension ConvTranspose: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
