// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Resampling to another size (ONNX `Resize`): operands X, the region of interest, scales and sizes;
/// one of the last two is given, an empty one counts as omitted.
public struct Resize: DataDependentShape, TolerantOperator {
  public static let name = "Resize"

  /// How values between elements come about.
  public enum Mode: String, Sendable, Hashable, CaseIterable { case nearest, linear, cubic }

  /// Which place in the input a place in the result stands for.
  public enum Coordinates: String, Sendable, Hashable, CaseIterable {
    case halfPixel = "half_pixel"
    case halfPixelSymmetric = "half_pixel_symmetric"
    case pytorchHalfPixel = "pytorch_half_pixel"
    case alignCorners = "align_corners"
    case asymmetric
    case tfHalfPixelForNN = "tf_half_pixel_for_nn"
    case tfCropAndResize = "tf_crop_and_resize"
  }

  /// Which element is nearest.
  public enum Nearest: String, Sendable, Hashable, CaseIterable {
    case roundPreferFloor = "round_prefer_floor"
    case roundPreferCeil = "round_prefer_ceil"
    case floor
    case ceil
  }

  /// What becomes of sizes that would change the proportions.
  public enum AspectRatio: String, Sendable, Hashable, CaseIterable {
    case stretch
    case notLarger = "not_larger"
    case notSmaller = "not_smaller"
  }

  public var mode: Mode
  public var coordinates: Coordinates
  public var nearest: Nearest
  public var cubicCoefficient: Double
  /// Whether elements beyond the edge get no weight instead of repeating the edge.
  public var excludeOutside: Bool
  /// What lies outside the input with `tfCropAndResize`.
  public var extrapolationValue: Double
  /// Whether shrinking averages over all elements that fall together.
  public var antialias: Bool
  /// The axes that scales, sizes and region are about; all when nil.
  public var axes: [Int]?
  public var keepAspectRatio: AspectRatio

  /// Creates the operator.
  public init(
    mode: Mode = .nearest, coordinates: Coordinates = .halfPixel,
    nearest: Nearest = .roundPreferFloor, cubicCoefficient: Double = -0.75,
    excludeOutside: Bool = false, extrapolationValue: Double = 0, antialias: Bool = false,
    axes: [Int]? = nil, keepAspectRatio: AspectRatio = .stretch
  ) {
    self.mode = mode
    self.coordinates = coordinates
    self.nearest = nearest
    self.cubicCoefficient = cubicCoefficient
    self.excludeOutside = excludeOutside
    self.extrapolationValue = extrapolationValue
    self.antialias = antialias
    self.axes = axes
    self.keepAspectRatio = keepAspectRatio
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    mode = try attributes.choice("mode", Mode.nearest)
    coordinates = try attributes.choice("coordinates", Coordinates.halfPixel)
    nearest = try attributes.choice("nearest", Nearest.roundPreferFloor)
    cubicCoefficient = try attributes.float("cubic_coefficient", -0.75)
    excludeOutside = try attributes.bool("exclude_outside", false)
    extrapolationValue = try attributes.float("extrapolation_value", 0)
    antialias = try attributes.bool("antialias", false)
    axes = try attributes.optionalInts("axes")
    keepAspectRatio = try attributes.choice("keep_aspect_ratio", AspectRatio.stretch)
  }

  public var attributes: Attributes {
    var result: Attributes = [
      "mode": .string(mode.rawValue), "coordinates": .string(coordinates.rawValue),
      "nearest": .string(nearest.rawValue), "cubic_coefficient": .float(cubicCoefficient),
      "exclude_outside": .bool(excludeOutside),
      "extrapolation_value": .float(extrapolationValue), "antialias": .bool(antialias),
      "keep_aspect_ratio": .string(keepAspectRatio.rawValue),
    ]
    if let axes { result["axes"] = .ints(axes) }
    return result
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [2, 3].filter { $0 < count } }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  /// What happens to one axis: its size before and after, and the factor between.
  struct AxisChange: Hashable {
    var axis: Int
    var input: Int
    var output: Int
    var scale: Double
    /// The region of interest, as parts of the axis.
    var start = 0.0
    var end = 1.0
  }

  private func resolvedAxes(_ rank: Int) throws(ApusError) -> [Int] {
    try axes.map { (list: [Int]) throws(ApusError) in try Axis.resolved(list, rank: rank) }
      ?? Array(0..<rank)
  }

  private func checked(_ scale: Double) throws(ApusError) {
    guard scale > 0, scale.isFinite else {
      throw ApusError(.execution, "a scale is \(scale); it must be positive")
    }
  }

  /// The changes of the named axes for an input of this shape.
  func changes(_ shape: [Int], scales: [Double]?, sizes: [Int]?, region: [Double]?)
    throws(ApusError) -> [AxisChange]
  {
    let axes = try resolvedAxes(shape.count)
    guard (scales == nil) != (sizes == nil), (scales?.count ?? sizes?.count) == axes.count,
      coordinates != .tfCropAndResize || region?.count == 2 * axes.count
    else {
      throw ApusError(
        .typeMismatch,
        "scales, sizes or region do not fit \(axes.count) axes; either scales or sizes are needed")
    }
    var result: [AxisChange] = []
    for (place, axis) in axes.enumerated() {
      let input = shape[axis]
      var change = AxisChange(axis: axis, input: input, output: 0, scale: 1)
      if let scales {
        let scale = scales[place]
        try checked(scale)
        let size = (Float(input) * Float(scale)).rounded(.down)
        guard size < 0x1p40 else { throw ApusError(.resourceLimit, "an axis of \(size) elements") }
        change.output = Int(size)
        change.scale = scale
      } else if let sizes {
        guard sizes[place] >= 0, sizes[place] < 1 << 40 else {
          throw ApusError(.execution, "a size is \(sizes[place])")
        }
        change.output = sizes[place]
        change.scale = Double(sizes[place]) / Double(max(1, input))
      }
      guard input > 0 || change.output == 0 else {
        throw ApusError(.execution, "an axis without elements cannot grow")
      }
      if let region, coordinates == .tfCropAndResize {
        change.start = region[place]
        change.end = region[axes.count + place]
      }
      result.append(change)
    }
    guard sizes != nil, keepAspectRatio != .stretch, !result.isEmpty else { return result }
    let factors = result.map(\.scale)
    let factor = keepAspectRatio == .notLarger ? factors.min() ?? 1 : factors.max() ?? 1
    for place in result.indices {
      let size = (factor * Double(result[place].input) + 0.5).rounded(.down)
      guard size < 0x1p40 else { throw ApusError(.resourceLimit, "an axis of \(size) elements") }
      result[place].scale = factor
      result[place].output = Int(size)
    }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard let dims = x.dims else { return [.tensor(x)] }
    let axes = try resolvedAxes(dims.count)
    var result = dims
    for axis in axes { result[axis] = inputs.freshDim("size\(axis)") }
    func given(_ index: Int) throws(ApusError) -> Bool {
      guard inputs.has(index) else { return false }
      return try inputs.tensor(index).shape?.contains(0) != true
    }
    let scales = try given(2) ? inputs.constant(2)?.doubles() : nil
    let sizes = try given(3) ? inputs.ints(3) : nil
    if let shape = x.shape, scales != nil || sizes != nil {
      let region = Array(repeating: 0.0, count: 2 * axes.count)
      for change in try changes(shape, scales: scales, sizes: sizes, region: region) {
        result[change.axis] = Dim(change.output)
      }
    } else if let sizes, keepAspectRatio == .stretch, sizes.count == axes.count {
      for (axis, size) in zip(axes, sizes) { result[axis] = Dim(size) }
    } else if let scales, scales.count == axes.count {
      for (axis, scale) in zip(axes, scales) where scale == scale.rounded() && abs(scale) < 1e6 {
        result[axis] = dims[axis] * Dim(Int(scale))
      }
    }
    return [typed(x.dataType, result)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    func given(_ index: Int) throws(ApusError) -> Tensor? {
      guard let tensor = try inputs.optional(index), tensor.count > 0 else { return nil }
      guard tensor.dataType != .string else {
        throw ApusError(.typeMismatch, "operand \(index) is \(tensor.type)")
      }
      return tensor
    }
    let changes = try changes(
      x.shape, scales: try given(2)?.doubles(), sizes: try given(3)?.ints(),
      region: try given(1)?.doubles())
    return [.tensor(try Resampler(self, changes).run(x))]
  }
}
