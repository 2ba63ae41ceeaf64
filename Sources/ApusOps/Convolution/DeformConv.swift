// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A convolution whose window elements are moved by offsets and weighed (ONNX `DeformConv`, two spatial
/// axes): operands x, weights, offsets `[N, groups * kernel * 2, OH, OW]`, bias, mask.
public struct DeformConv: CostedOperator, TolerantOperator {
  public static let name = "DeformConv"
  public var strides: [Int]
  public var dilations: [Int]
  public var pads: [Int]
  public var group: Int
  public var offsetGroups: Int

  /// Creates the operator.
  public init(
    strides: [Int] = [], dilations: [Int] = [], pads: [Int] = [], group: Int = 1,
    offsetGroups: Int = 1
  ) {
    self.strides = strides
    self.dilations = dilations
    self.pads = pads
    self.group = group
    self.offsetGroups = offsetGroups
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    strides = try attributes.ints("strides", [])
    dilations = try attributes.ints("dilations", [])
    pads = try attributes.ints("pads", [])
    group = try attributes.int("group", 1)
    offsetGroups = try attributes.int("offset_groups", 1)
  }

  public var attributes: Attributes {
    [
      "strides": .ints(strides), "dilations": .ints(dilations), "pads": .ints(pads),
      "group": .int(group), "offset_groups": .int(offsetGroups),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let types = inputs.types.prefix(2)
    let plain = InferenceInputs(types: Array(types), scope: inputs.scope)
    return try Conv(strides: strides, dilations: dilations, pads: pads, group: group).infer(plain)
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    10 * Conv(group: group).operations(inputs: Array(inputs.prefix(2)), outputs: outputs)
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let w = try inputs.required(1)
    let offset = try inputs.required(2)
    let types = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    guard x.rank == 4, case .tensor(let type)? = types.first, let shape = type.shape else {
      throw ApusError(.notYetSupported, "a deformable convolution over \(x.rank - 2) axes")
    }
    let window = try Window(
      input: Array(x.shape[2...]), kernel: Array(w.shape[2...]), strides: strides,
      dilations: dilations, pads: pads, autoPad: .notset)
    let kernel = w.shape[2] * w.shape[3]
    let (height, width) = (shape[2], shape[3])
    guard offsetGroups > 0, x.shape[1] % offsetGroups == 0,
      offset.shape == [x.shape[0], offsetGroups * kernel * 2, height, width]
    else { throw ApusError(.typeMismatch, "offsets \(offset.type) for a result \(type)") }
    let mask = try inputs.optional(4)
    if let mask, mask.shape != [x.shape[0], offsetGroups * kernel, height, width] {
      throw ApusError(.typeMismatch, "a mask \(mask.type) for a result \(type)")
    }
    let bias = try inputs.optional(3)?.doubles()
    guard bias.map({ $0.count == shape[1] }) ?? true else {
      throw ApusError(.typeMismatch, "\(bias?.count ?? 0) bias values for \(shape[1]) channels")
    }
    let (values, weights, moves, factors) = (x.doubles(), w.doubles(), offset.doubles(), mask?.doubles())
    let (perGroup, outPerGroup) = (w.shape[1], shape[1] / group)
    let perOffset = x.shape[1] / offsetGroups
    let area = height * width
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    for n in 0..<x.shape[0] {
      for place in 0..<area {
        let (y, column) = (place / width, place % width)
        for c in 0..<x.shape[1] {
          let part = n * offsetGroups + c / perOffset
          for k in 0..<kernel {
            let base = (part * kernel + k) * 2 * area + place
            let row =
              Double(y * window.strides[0] - window.begin[0] + k / w.shape[3] * window.dilations[0])
              + moves[base]
            let line =
              Double(column * window.strides[1] - window.begin[1] + k % w.shape[3] * window.dilations[1])
              + moves[base + area]
            var value = sample(values, (n * x.shape[1] + c), x.shape[2], x.shape[3], row, line)
            if let factors { value *= factors[(part * kernel + k) * area + place] }
            guard value != 0 else { continue }
            let first = c / perGroup * outPerGroup
            for o in first..<(first + outPerGroup) {
              result[(n * shape[1] + o) * area + place] +=
                value * weights[(o * perGroup + c % perGroup) * kernel + k]
            }
          }
        }
        if let bias {
          for o in 0..<shape[1] { result[(n * shape[1] + o) * area + place] += bias[o] }
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }

  /// The image between its pixels, zero outside.
  private func sample(
    _ values: [Double], _ plane: Int, _ height: Int, _ width: Int, _ y: Double, _ x: Double
  ) -> Double {
    guard y > -1, x > -1, y < Double(height), x < Double(width) else { return 0 }
    let (top, left) = (Int(y.rounded(.down)), Int(x.rounded(.down)))
    let (fy, fx) = (y - Double(top), x - Double(left))
    func at(_ row: Int, _ column: Int) -> Double {
      guard row >= 0, row < height, column >= 0, column < width else { return 0 }
      return values[(plane * height + row) * width + column]
    }
    return (1 - fy) * ((1 - fx) * at(top, left) + fx * at(top, left + 1))
      + fy * ((1 - fx) * at(top + 1, left) + fx * at(top + 1, left + 1))
  }
}
