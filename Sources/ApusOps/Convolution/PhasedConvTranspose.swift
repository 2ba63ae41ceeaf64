// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A transposed convolution in channels-last order whose weights lie as its kernels read them: operands X
/// `[N, spatial..., C]` and W `[taps, C/group, phases, OC]`.
///
/// With stride `s`, results whose positions have the same remainder modulo `s` (a phase) are those of an
/// ordinary convolution of stride 1 with every `s`-th tap of the kernel. Phase `c` of an axis has the taps
/// `c, c + s, ...`, stored from the last to the first: in this order they meet ascending input positions.
/// A phase with fewer taps than others has zeros behind them. Phases and taps of several axes are counted
/// row-major.
public struct PhasedConvTranspose: AnchorOperator, CostedOperator, TolerantOperator, SampledOperator
{
  public static let name = "PhasedConvTranspose"
  /// The same operation on weights `[C, OC/group, kernel...]`.
  public var plain: ConvTranspose
  /// The kernel's sizes.
  public var kernel: [Int]

  /// Creates the phased form; nil where some phase has no tap, or taps of one remainder belong to several
  /// phases: kernels smaller than the stride, and dilations that share a factor with it.
  public init?(_ plain: ConvTranspose, kernel: [Int]) {
    var plain = plain
    let ones = Array(repeating: 1, count: kernel.count)
    if plain.strides.isEmpty { plain.strides = ones }
    if plain.dilations.isEmpty { plain.dilations = ones }
    guard Self.isPhased(plain.strides, plain.dilations, kernel) else { return nil }
    self.plain = plain
    self.kernel = kernel
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    plain = try ConvTranspose(reading: &attributes)
    kernel = try attributes.ints("kernel")
    guard Self.isPhased(plain.strides, plain.dilations, kernel) else {
      throw ApusError(
        .invalidAttribute,
        "a kernel of \(kernel) with strides \(plain.strides) and dilations \(plain.dilations) has no phases"
      )
    }
  }

  public var attributes: Attributes {
    var all = plain.attributes
    all["kernel"] = .ints(kernel)
    return all
  }

  private static func isPhased(_ strides: [Int], _ dilations: [Int], _ kernel: [Int]) -> Bool {
    func shareNoFactor(_ a: Int, _ b: Int) -> Bool {
      var (a, b) = (a, b)
      while b > 0 { (a, b) = (b, a % b) }
      return a == 1
    }
    let limit = 1 << 16
    return strides.count == kernel.count && dilations.count == kernel.count && !kernel.isEmpty
      && kernel.count <= 3 && kernel.allSatisfy({ $0 > 0 && $0 < limit })
      && kernel.reduce(1, &*) <= 1 << 24
      && kernel.indices.allSatisfy { axis in
        strides[axis] > 0 && dilations[axis] > 0 && dilations[axis] < 1 << 31
          && kernel[axis] >= strides[axis]
          && shareNoFactor(strides[axis], dilations[axis])
      }
  }

  /// How many taps phase `phase` of an axis has.
  public func tapCount(axis: Int, phase: Int) -> Int {
    (kernel[axis] - phase + plain.strides[axis] - 1) / plain.strides[axis]
  }

  /// Taps of the phase that has most of them.
  public var taps: Int { kernel.indices.reduce(1) { $0 &* tapCount(axis: $1, phase: 0) } }

  /// The number of phases.
  public var phases: Int { plain.strides.reduce(1, &*) }

  /// For each place of a kernel, row-major, where its weights are: which phase, and which of its taps.
  public var places: [(phase: Int, tap: Int)] {
    var result = [(phase: 0, tap: 0)]
    // Taps are counted within their phase, so how many those before them have is needed, too.
    for axis in kernel.indices {
      let stride = plain.strides[axis]
      result = result.flatMap { outer in
        (0..<kernel[axis]).map { place in
          let phase = place % stride
          let count = tapCount(axis: axis, phase: phase)
          return (
            outer.phase * stride + phase, outer.tap * count + (count - 1 - place / stride)
          )
        }
      }
    }
    return result
  }

  /// Weights `[C, OC/group, kernel...]` as this operator reads them.
  ///
  /// - Throws: `type-mismatch` for weights of another shape.
  public func phased(_ weights: Tensor) throws(ApusError) -> Tensor {
    guard Array(weights.shape.dropFirst(2)) == kernel, plain.group > 0,
      weights.shape[0] % plain.group == 0
    else { throw ApusError(.typeMismatch, "weights \(weights.type) for a kernel of \(kernel)") }
    let (inputs, outputs) = (weights.shape[0] / plain.group, weights.shape[1])
    let places = places
    let all = outputs * plain.group
    let source = weights.doubles()
    var values = [Double](repeating: 0, count: taps * inputs * phases * all)
    for (index, value) in source.enumerated() {
      let (row, place) = index.quotientAndRemainder(dividingBy: places.count)
      let (channel, output) = row.quotientAndRemainder(dividingBy: outputs)
      let (phase, tap) = places[place]
      let column = channel / inputs * outputs + output
      values[((tap * inputs + channel % inputs) * phases + phase) * all + column] = value
    }
    return try Tensor(values, weights.dataType, shape: [taps, inputs, phases, all])
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let w = try inputs.tensor(1)
    let type = try SumType.check(x.dataType, w.dataType, plain.sumType)
    try inputs.requireFloat(0)
    guard let xDims = x.dims, let wDims = w.dims else { return [typed(type, nil)] }
    guard xDims.count == kernel.count + 2, wDims.count == 4 else {
      throw ApusError(
        .typeMismatch, "input \(x) and weights \(w) do not fit \(kernel.count) spatial axes")
    }
    let (perGroup, outputs) = (wDims[1], wDims[3])
    guard wDims[0].value.map({ $0 == taps }) ?? true, wDims[2].value.map({ $0 == phases }) ?? true,
      plain.group > 0, outputs.value.map({ $0 % plain.group == 0 }) ?? true
    else {
      throw ApusError(.typeMismatch, "weights \(w) for \(taps) taps in \(phases) phases")
    }
    if let channels = xDims[xDims.count - 1].value, let rows = perGroup.value,
      rows.multipliedReportingOverflow(by: plain.group) != (channels, false)
    {
      throw ApusError(
        .typeMismatch,
        "the input has \(channels) channels, the weights are for \(rows) in each of \(plain.group) groups"
      )
    }
    let spatial = try WindowInference.output(
      Array(xDims[1..<(xDims.count - 1)]), kernel: kernel, inputs
    ) { (sizes, extents) throws(ApusError) in try plain.window(input: sizes, kernel: extents) }
    return [typed(type, [xDims[0]] + spatial + [outputs])]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard inputs.count > 1, let x = inputs[0]?.shape, let columns = inputs[1]?.shape?.last else {
      return 0
    }
    let perInput = kernel.reduce(2.0) { $0 * Double($1) } * Double(columns) / Double(plain.group)
    return perInput * x.reduce(1.0) { $0 * Double($1) }
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    plain.tolerance(type, inputs: inputs)
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
      x: x, bias: nil, result: result, channelsLast: true, group: plain.group,
      window: plain.window(input: Array(x.shape[1..<(x.rank - 1)]), kernel: kernel),
      weights: byOutput(w))
  }

  /// Elements `[taps, C/g, phases, OC]` as `[OC, kernel..., C/g]`.
  private func byOutput(_ weights: Tensor) -> [Double] {
    let (inputs, outputs) = (weights.shape[1], weights.shape[3])
    let places = places
    let source = weights.doubles()
    var result: [Double] = []
    result.reserveCapacity(outputs * places.count * inputs)
    for output in 0..<outputs {
      for (phase, tap) in places {
        for input in 0..<inputs {
          result.append(source[((tap * inputs + input) * phases + phase) * outputs + output])
        }
      }
    }
    return result
  }
}

extension PhasedConvTranspose: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
