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
    guard try Tensor.checkedCount(kernel) <= 1 << 28 else {
      throw ApusError(.resourceLimit, "a window of \(kernel) elements")
    }
    return try Window(
      input: input, kernel: kernel, strides: strides, dilations: dilations, pads: pads,
      autoPad: autoPad, ceilMode: ceilMode)
  }

  func infer(_ inputs: InferenceInputs) throws(ApusError) -> TensorType {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat || x.dataType.isInteger else {
      throw ApusError(.typeMismatch, "pooling of elements of type \(x.dataType)")
    }
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

  /// The input elements under one window.
  struct Covered {
    fileprivate let places: [Int]
    fileprivate let base: Int
    fileprivate let step: Int
    /// The number of places the window has inside the padded input.
    let paddedCount: Int

    /// The number of elements.
    var count: Int { places.count }
    /// The row-major position of element `index`.
    subscript(index: Int) -> Int { base + places[index] * step }
  }

  /// Calls `body` for every result element with its row-major position and what its window covers.
  func forEachWindow(_ shape: [Int], _ body: (_ output: Int, _ covered: Covered) -> Void)
    throws(ApusError) -> [Int]
  {
    let layout = SpatialLayout(channelsLast: channelsLast, rank: shape.count)
    let input = layout.spatial(shape)
    let window = try window(input: input)
    let channels = shape[layout.channelAxis]
    let output = layout.shape(shape[0], channels, window.output)
    guard try Tensor.checkedCount(output) > 0 else { return output }
    let positions = window.output.reduce(1, &*)
    let inputPositions = input.reduce(1, &*)
    for position in 0..<positions {
      let places = Self.places(position, input, window)
      for image in 0..<shape[0] {
        for channel in 0..<channels {
          let line = image * channels + channel
          let covered = Covered(
            places: places.inside,
            base: channelsLast
              ? image * inputPositions * channels + channel : line * inputPositions,
            step: channelsLast ? channels : 1, paddedCount: places.padded)
          body(
            channelsLast
              ? (image * positions + position) * channels + channel : line * positions + position,
            covered)
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
    for element in 0..<window.kernel.reduce(1, &*) {
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
    let lowest = x.dataType.isFloat ? -Double.infinity : Double(x.dataType.integerRange.lowerBound)
    let inferred = try pool.infer(InferenceInputs(types: inputs.map { $0?.type }))
    let count = try Tensor.checkedCount(inferred.shape ?? [])
    var best = [Double](repeating: lowest, count: count)
    var indices = [Int64](repeating: 0, count: count)
    let shape = try pool.forEachWindow(x.shape) { output, covered in
      var largest = lowest
      var place = covered.count > 0 ? covered[0] : 0
      for index in 0..<covered.count {
        let value = values[covered[index]]
        if value > largest || value.isNaN {
          (largest, place) = (value, covered[index])
          if value.isNaN { break }
        }
      }
      best[output] = largest
      indices[output] = Int64(position(place, x.shape))
    }
    return [
      .tensor(try Tensor(best, x.dataType, shape: shape)),
      .tensor(try Tensor(indices, .int64, shape: shape)),
    ]
  }

  private func position(_ index: Int, _ shape: [Int]) -> Int {
    guard columnMajorIndices, !pool.channelsLast else { return index }
    let spatial = Array(shape[2...])
    let size = spatial.reduce(1, &*)
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
    let inferred = try pool.infer(InferenceInputs(types: inputs.map { $0?.type }))
    var means = [Double](repeating: 0, count: try Tensor.checkedCount(inferred.shape ?? []))
    let shape = try pool.forEachWindow(x.shape) { output, covered in
      var sum = 0.0
      for index in 0..<covered.count { sum += values[covered[index]] }
      means[output] = sum / Double(countIncludePad ? covered.paddedCount : covered.count)
    }
    return [.tensor(try Tensor(means, x.dataType, shape: shape))]
  }
}

extension AveragePool: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}

extension MaxPool: BatchwiseOperator {
  /// Places of the largest elements, a second result, count through the whole batch; callers that split
  /// batches ask for one result only.
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched
  }
}
