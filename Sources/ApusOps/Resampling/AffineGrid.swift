// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Where each place of an image comes from under an affine map (ONNX `AffineGrid`): operands the maps
/// `[N, 2, 3]` or `[N, 3, 4]` and the image's shape.
public struct AffineGrid: DataDependentShape {
  public static let name = "AffineGrid"
  /// Whether -1 and 1 are the centres of the outermost places instead of the edges of the image.
  public var alignCorners: Bool

  /// Creates the operator.
  public init(alignCorners: Bool = false) { self.alignCorners = alignCorners }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alignCorners = try attributes.bool("align_corners", false)
  }

  public var attributes: Attributes { ["align_corners": .bool(alignCorners)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let maps = try inputs.tensor(0)
    try inputs.requireFloat(0)
    try inputs.requireInteger(1, "the image's shape")
    guard let dims = maps.dims, let axes = dims.dropFirst().first?.value else {
      return [typed(maps.dataType, nil)]
    }
    guard dims.count == 3, axes == 2 || axes == 3, dims[2].value ?? axes + 1 == axes + 1 else {
      throw ApusError(.typeMismatch, "maps are \(maps), expected [N, 2, 3] or [N, 3, 4]")
    }
    let sizes = inputs.dims(1)
    let spatial = (0..<axes).map { axis in
      sizes.flatMap { $0.count == axes + 2 ? $0[axis + 2] : nil } ?? inputs.freshDim("size\(axis)")
    }
    return [typed(maps.dataType, [dims[0]] + spatial + [Dim(axes)])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let maps = try inputs.required(0)
    let axes = maps.shape[1]
    let sizes = try inputs.required(1).ints().dropFirst(2).map { $0 }
    guard sizes.count == axes, sizes.allSatisfy({ $0 >= 0 }) else {
      throw ApusError(.typeMismatch, "a shape of \(sizes.count + 2) axes for maps \(maps.type)")
    }
    let shape = [maps.shape[0]] + sizes + [axes]
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    let values = maps.doubles()
    let places = sizes.reduce(1, *)
    for n in 0..<maps.shape[0] {
      for place in 0..<places {
        // x runs along the last axis and comes first.
        var rest = place
        var point = [Double](repeating: 1, count: axes + 1)
        for axis in (0..<axes).reversed() {
          let (size, at) = (Double(sizes[axis]), Double(rest % sizes[axis]))
          rest /= sizes[axis]
          point[axes - 1 - axis] = alignCorners ? (size == 1 ? -1 : 2 * at / (size - 1) - 1) : (2 * at + 1) / size - 1
        }
        for row in 0..<axes {
          var sum = 0.0
          for column in 0...axes { sum += values[(n * axes + row) * (axes + 1) + column] * point[column] }
          result[(n * places + place) * axes + row] = sum
        }
      }
    }
    return [.tensor(try Tensor(result, maps.dataType, shape: shape))]
  }
}
