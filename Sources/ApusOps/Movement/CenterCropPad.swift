// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Axes brought to given sizes around their middle, by cutting or by zeros (ONNX `CenterCropPad`):
/// operands x and the sizes of `axes`.
public struct CenterCropPad: DataDependentShape {
  public static let name = "CenterCropPad"
  public var axes: [Int]?

  /// Creates the operator; without axes, all of them.
  public init(axes: [Int]? = nil) { self.axes = axes }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axes = try attributes.optionalInts("axes")
  }

  public var attributes: Attributes { axes.map { ["axes": .ints($0)] } ?? [:] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  private func axes(rank: Int) throws(ApusError) -> [Int] {
    try axes.map { (list) throws(ApusError) in try Axis.resolved(list, rank: rank) } ?? Array(0..<rank)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireInteger(1, "the sizes")
    guard var dims = x.dims else { return [.tensor(x)] }
    let sizes = inputs.dims(1)
    let axes = try axes(rank: dims.count)
    if let sizes, sizes.count != axes.count {
      throw ApusError(.typeMismatch, "\(sizes.count) sizes for \(axes.count) axes")
    }
    for (index, axis) in axes.enumerated() {
      dims[axis] = sizes?[index] ?? inputs.freshDim("size\(axis)")
    }
    return [typed(x.dataType, dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let sizes = try inputs.required(1).ints()
    let axes = try axes(rank: x.rank)
    guard sizes.count == axes.count, sizes.allSatisfy({ $0 >= 0 }) else {
      throw ApusError(.typeMismatch, "sizes \(sizes) for axes \(axes)")
    }
    var starts = [Int](repeating: 0, count: x.rank)
    var ends = x.shape
    var before = [Int](repeating: 0, count: x.rank)
    var after = before
    for (axis, size) in zip(axes, sizes) {
      let given = x.shape[axis]
      if size < given {
        starts[axis] = (given - size) / 2
        ends[axis] = starts[axis] + size
      } else {
        before[axis] = (size - given) / 2
        after[axis] = size - given - before[axis]
      }
    }
    let cut = try Slice().evaluate([
      .tensor(x), .tensor(try .vector(starts)), .tensor(try .vector(ends)),
    ])
    guard let part = cut.first, case .tensor(let tensor) = part else { return [] }
    return try Pad(mode: .constant).evaluate([
      .tensor(tensor), .tensor(try .vector(before + after)),
    ])
  }
}
