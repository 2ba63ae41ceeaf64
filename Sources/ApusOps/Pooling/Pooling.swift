// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The attributes of a pooling operator (ONNX `MaxPool`, `AveragePool`, `LpPool`).
public struct PoolAttributes: Sendable, Hashable {
  public var kernel: [Int]
  public var strides: [Int]
  public var pads: [Int]
  public var dilations: [Int]
  public var autoPad: AutoPad
  /// Whether a last, partly covered window counts.
  public var ceilMode: Bool
  /// `[N, spatial..., C]` instead of `[N, C, spatial...]`.
  public var channelsLast: Bool

  /// Creates the attributes; empty lists stand for ones and zeros.
  public init(
    kernel: [Int], strides: [Int] = [], pads: [Int] = [], dilations: [Int] = [],
    autoPad: AutoPad = .notset, ceilMode: Bool = false, channelsLast: Bool = false
  ) {
    self.kernel = kernel
    self.strides = strides
    self.pads = pads
    self.dilations = dilations
    self.autoPad = autoPad
    self.ceilMode = ceilMode
    self.channelsLast = channelsLast
  }

  init(reading attributes: inout AttributeReader) throws(ApusError) {
    kernel = try attributes.ints("kernel")
    strides = try attributes.ints("strides", [])
    pads = try attributes.ints("pads", [])
    dilations = try attributes.ints("dilations", [])
    autoPad = try attributes.choice("auto_pad", AutoPad.notset)
    ceilMode = try attributes.bool("ceil_mode", false)
    channelsLast = try attributes.bool("channels_last", false)
  }

  var attributes: Attributes {
    [
      "kernel": .ints(kernel), "strides": .ints(strides), "pads": .ints(pads),
      "dilations": .ints(dilations), "auto_pad": .string(autoPad.rawValue),
      "ceil_mode": .bool(ceilMode), "channels_last": .bool(channelsLast),
    ]
  }

  /// The window over an input of these spatial sizes.
  public func window(input: [Int]) throws(ApusError) -> Window {
    try Window(
      input: input, kernel: kernel, strides: strides, dilations: dilations, pads: pads,
      autoPad: autoPad, ceilMode: ceilMode)
  }

  func infer(_ inputs: InferenceInputs) throws(ApusError) -> TensorType {
    let x = try inputs.tensor(0)
    guard let dims = x.dims else { return x }
    guard dims.count == kernel.count + 2 else {
      throw ApusError(
        .typeMismatch, "a window of \(kernel.count) axes does not fit the input \(x)")
    }
    let layout = SpatialLayout(channelsLast: channelsLast, rank: dims.count)
    let spatial = try WindowInference.output(
      layout.spatial(dims), kernel: kernel, inputs
    ) { (sizes, _) throws(ApusError) in try window(input: sizes) }
    return TensorType(
      x.dataType, layout.shape(dims[0], dims[layout.channelAxis], spatial))
  }

  /// Calls `body` for every result element with the element's row-major position, the positions of
  /// the input elements under its window, and the number of places the window has inside the padded
  /// input.
  func forEachWindow(
    _ shape: [Int], _ body: (_ output: Int, _ inputs: [Int], _ paddedCount: Int) -> Void
  ) throws(ApusError) -> [Int] {
    let layout = SpatialLayout(channelsLast: channelsLast, rank: shape.count)
    let input = layout.spatial(shape)
    let window = try window(input: input)
    let channels = shape[layout.channelAxis]
    let output = layout.shape(shape[0], channels, window.output)
    _ = try Tensor.checkedCount(output)
    let positions = window.output.reduce(1, *)
    let inputPositions = input.reduce(1, *)
    let places = (0..<positions).map { Self.places($0, input, window) }
    for image in 0..<shape[0] {
      for channel in 0..<channels {
        for position in 0..<positions {
          let to: Int
          let from: [Int]
          if channelsLast {
            to = (image * positions + position) * channels + channel
            from = places[position].inside.map {
              (image * inputPositions + $0) * channels + channel
            }
          } else {
            to = (image * channels + channel) * positions + position
            from = places[position].inside.map {
              (image * channels + channel) * inputPositions + $0
            }
          }
          body(to, from, places[position].padded)
        }
      }
    }
    return output
  }

  private static func places(_ position: Int, _ input: [Int], _ window: Window) -> (
    inside: [Int], padded: Int
  ) {
    var rest = position
    var starts = [Int](repeating: 0, count: input.count)
    for axis in input.indices.reversed() {
      starts[axis] = rest % window.output[axis] * window.strides[axis] - window.begin[axis]
      rest /= window.output[axis]
    }
    var inside: [Int] = []
    var padded = 0
    for element in 0..<window.kernel.reduce(1, *) {
      var rest = element
      var index = 0
      var scale = 1
      var isInside = true
      var isPadded = true
      for axis in input.indices.reversed() {
        let at = starts[axis] + rest % window.kernel[axis] * window.dilations[axis]
        rest /= window.kernel[axis]
        if at < 0 || at >= input[axis] { isInside = false }
        if at >= input[axis] + window.end[axis] { isPadded = false }
        index += at * scale
        scale *= input[axis]
      }
      if isInside { inside.append(index) }
      if isPadded { padded += 1 }
    }
    return (inside, padded)
  }
}

/// Largest element under a window (ONNX `MaxPool`); the optional second result holds its position.
public struct MaxPool: ChannelsLastConvertible, CostedOperator {
  public static let name = "MaxPool"
  public var pool: PoolAttributes
  /// Whether positions count columns first.
  public var columnMajorIndices: Bool

  /// Creates the operator.
  public init(_ pool: PoolAttributes, columnMajorIndices: Bool = false) {
    self.pool = pool
    self.columnMajorIndices = columnMajorIndices
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    pool = try PoolAttributes(reading: &attributes)
    columnMajorIndices = try attributes.bool("column_major_indices", false)
  }

  public var attributes: Attributes {
    var result = pool.attributes
    result["column_major_indices"] = .bool(columnMajorIndices)
    return result
  }

  public var isChannelsLast: Bool { pool.channelsLast }

  public func channelsLast() -> (any Operator)? {
    var copy = self
    copy.pool.channelsLast = true
    return copy
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let result = try pool.infer(inputs)
    return [.tensor(result), .tensor(TensorType(.int64, result.dims))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let count = (outputs.first?.shape ?? []).reduce(1.0) { $0 * Double($1) }
    return count * pool.kernel.reduce(1.0) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let values = x.doubles()
    var result: [Int: (value: Double, index: Int)] = [:]
    let lowest = x.dataType.isFloat ? -Double.infinity : Double(x.dataType.integerRange.lowerBound)
    let shape = try pool.forEachWindow(x.shape) { output, places, _ in
      var best = (value: lowest, index: places.first ?? 0)
      for place in places where values[place] > best.value || values[place].isNaN {
        best = (values[place], place)
        if values[place].isNaN { break }
      }
      result[output] = best
    }
    let count = try Tensor.checkedCount(shape)
    let best = (0..<count).map { result[$0]?.value ?? lowest }
    let indices = (0..<count).map { Int64(result[$0].map { position($0.index, x.shape) } ?? 0) }
    return [
      .tensor(try Tensor(best, x.dataType, shape: shape)),
      .tensor(try Tensor(indices, .int64, shape: shape)),
    ]
  }

  private func position(_ index: Int, _ shape: [Int]) -> Int {
    guard columnMajorIndices, !pool.channelsLast else { return index }
    let spatial = Array(shape[2...])
    let size = spatial.reduce(1, *)
    var rest = index % size
    var result = 0
    var coordinates: [Int] = []
    for extent in spatial.reversed() {
      coordinates.insert(rest % extent, at: 0)
      rest /= extent
    }
    for axis in spatial.indices.reversed() { result = result * spatial[axis] + coordinates[axis] }
    return index / size * size + result
  }
}

/// Mean of the elements under a window (ONNX `AveragePool`).
public struct AveragePool: ChannelsLastConvertible, CostedOperator {
  public static let name = "AveragePool"
  public var pool: PoolAttributes
  /// Whether padding counts as zeros.
  public var countIncludePad: Bool

  /// Creates the operator.
  public init(_ pool: PoolAttributes, countIncludePad: Bool = false) {
    self.pool = pool
    self.countIncludePad = countIncludePad
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    pool = try PoolAttributes(reading: &attributes)
    countIncludePad = try attributes.bool("count_include_pad", false)
  }

  public var attributes: Attributes {
    var result = pool.attributes
    result["count_include_pad"] = .bool(countIncludePad)
    return result
  }

  public var isChannelsLast: Bool { pool.channelsLast }

  public func channelsLast() -> (any Operator)? {
    var copy = self
    copy.pool.channelsLast = true
    return copy
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [.tensor(try pool.infer(inputs))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let count = (outputs.first?.shape ?? []).reduce(1.0) { $0 * Double($1) }
    return count * pool.kernel.reduce(1.0) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let values = x.doubles()
    var result: [Int: Double] = [:]
    let shape = try pool.forEachWindow(x.shape) { output, places, padded in
      let sum = places.reduce(0.0) { $0 + values[$1] }
      result[output] = sum / Double(countIncludePad ? padded : places.count)
    }
    let means = (0..<(try Tensor.checkedCount(shape))).map { result[$0] ?? 0 }
    return [.tensor(try Tensor(means, x.dataType, shape: shape))]
  }
}
