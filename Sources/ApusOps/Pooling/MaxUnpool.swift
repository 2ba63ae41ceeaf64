// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Largest elements put back where `MaxPool` found them, zeros elsewhere (ONNX `MaxUnpool`): operands x,
/// indices, the result's shape.
public struct MaxUnpool: DataDependentShape {
  public static let name = "MaxUnpool"
  public var kernel: [Int]
  public var strides: [Int]
  public var pads: [Int]

  /// Creates the operator.
  public init(kernel: [Int], strides: [Int] = [], pads: [Int] = []) {
    self.kernel = kernel
    self.strides = strides
    self.pads = pads
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    kernel = try attributes.ints("kernel")
    strides = try attributes.ints("strides", [])
    pads = try attributes.ints("pads", [])
  }

  public var attributes: Attributes {
    ["kernel": .ints(kernel), "strides": .ints(strides), "pads": .ints(pads)]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [2].filter { $0 < count } }

  /// The shape of the tensor that was pooled, without what rounding cut off.
  private func natural(_ shape: [Int]) throws(ApusError) -> [Int] {
    let axes = kernel.count
    guard shape.count == axes + 2, strides.isEmpty || strides.count == axes,
      pads.isEmpty || pads.count == 2 * axes,
      (kernel + strides + pads).allSatisfy({ $0 >= 0 && $0 < 1 << 31 })
    else { throw ApusError(.invalidAttribute, "the window does not fit \(shape.count) axes") }
    var result = Array(shape.prefix(2))
    for axis in 0..<axes {
      let stride = strides.isEmpty ? 1 : strides[axis]
      let padding = pads.isEmpty ? 0 : pads[axis] + pads[axes + axis]
      result.append(max(0, (shape[axis + 2] - 1) * stride + kernel[axis] - padding))
    }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireInteger(1, "the indices")
    if inputs.has(2) {
      let dims = inputs.dims(2)
      return [typed(x.dataType, dims ?? x.dims?.indices.map { inputs.freshDim("size\($0)") })]
    }
    guard let dims = x.dims else { return [.tensor(x)] }
    if let shape = x.shape { return [typed(x.dataType, try natural(shape).map { Dim($0) })] }
    return [typed(x.dataType, dims.prefix(2) + dims.indices.dropFirst(2).map { inputs.freshDim("size\($0)") })]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let places = try inputs.required(1).ints()
    let shape = try natural(x.shape)
    let target = try inputs.optional(2)?.ints() ?? shape
    guard places.count == x.count, target.count == shape.count,
      zip(target, shape).allSatisfy({ $0 >= $1 })
    else { throw ApusError(.typeMismatch, "\(places.count) indices, or a shape \(target), for \(x.type)") }
    let strides = CopyPlan.rowMajorStrides(shape)
    let wide = CopyPlan.rowMajorStrides(target)
    let count = try Tensor.checkedCount(shape)
    var moves: [(Int, Int)] = []
    for (index, place) in places.enumerated() {
      guard place >= 0, place < count else {
        throw ApusError(.execution, "index \(place) is outside \(shape)")
      }
      // Indices count in the tensor that was pooled.
      var (rest, moved) = (place, 0)
      for axis in shape.indices {
        moved += rest / max(1, strides[axis]) * wide[axis]
        rest %= max(1, strides[axis])
      }
      moves.append((moved, index))
    }
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(target))
    let values = x.doubles()
    for (to, from) in moves { result[to] = values[from] }
    return [.tensor(try Tensor(result, x.dataType, shape: target))]
  }
}
