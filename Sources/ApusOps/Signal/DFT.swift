// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The discrete Fourier transform along an axis (ONNX `DFT`): operands x `[..., 1 or 2]` (real numbers,
/// or real and imaginary parts), the length, the axis.
public struct DFT: DataDependentShape, TolerantOperator {
  public static let name = "DFT"
  public var isInverse: Bool
  /// Whether only the frequencies that a real signal's others follow from are given, or for the
  /// inverse, taken.
  public var isOneSided: Bool
  /// The axis when no operand says it.
  public var axis: Int

  /// Creates the operator.
  public init(isInverse: Bool = false, isOneSided: Bool = false, axis: Int = -2) {
    self.isInverse = isInverse
    self.isOneSided = isOneSided
    self.axis = axis
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    isInverse = try attributes.bool("inverse", false)
    isOneSided = try attributes.bool("one_sided", false)
    axis = try attributes.int("axis", -2)
  }

  public var attributes: Attributes {
    ["inverse": .bool(isInverse), "one_sided": .bool(isOneSided), "axis": .int(axis)]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1, 2].filter { $0 < count } }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-11 : (type == .float32 ? 1e-5 : 4e-3)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    guard var dims = x.dims else { return [.tensor(x)] }
    guard dims.count >= 2, let last = dims.last, last.value.map({ $0 == 1 || $0 == 2 }) ?? true else {
      throw ApusError(.typeMismatch, "\(x) does not end in an axis of one or two parts")
    }
    guard !inputs.has(2) || inputs.ints(2) != nil else {
      return [typed(x.dataType, dims.indices.map { inputs.freshDim("axis\($0)") })]
    }
    let at = try Axis.resolved(inputs.ints(2)?.first ?? axis, rank: dims.count)
    guard at < dims.count - 1 else {
      throw ApusError(.invalidAttribute, "the axis of the parts cannot be transformed")
    }
    var length: Dim? = dims[at]
    if inputs.has(1) {
      length = inputs.dims(1)?.first
    } else if isInverse && isOneSided {
      length = dims[at].value.map { Dim(2 * ($0 - 1)) }
    }
    if isOneSided && !isInverse { length = length?.value.map { Dim($0 / 2 + 1) } }
    dims[at] = length ?? inputs.freshDim("frequencies")
    dims[dims.count - 1] = isOneSided && isInverse ? 1 : 2
    return [typed(x.dataType, dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    guard x.rank >= 2, x.dataType.isFloat, let parts = x.shape.last, parts == 1 || parts == 2 else {
      throw ApusError(.typeMismatch, "\(x.type) does not end in an axis of one or two parts")
    }
    let given = try inputs.optional(2).map { (t) throws(ApusError) in
      guard let first = t.ints().first else { throw ApusError(.typeMismatch, "the axis is empty") }
      return first
    }
    let at = try Axis.resolved(given ?? axis, rank: x.rank)
    guard at < x.rank - 1 else {
      throw ApusError(.invalidAttribute, "the axis of the parts cannot be transformed")
    }
    let size = x.shape[at]
    let natural = isInverse && isOneSided ? max(0, 2 * (size - 1)) : size
    let length = try inputs.optional(1)?.ints().first ?? natural
    guard length > 0, length < 1 << 28 else {
      throw ApusError(.execution, "a transform of length \(length)")
    }
    let kept = isOneSided && !isInverse ? length / 2 + 1 : length
    let outParts = isOneSided && isInverse ? 1 : 2
    var shape = x.shape
    shape[at] = kept
    shape[x.rank - 1] = outParts
    let outer = x.shape[..<at].reduce(1, *)
    let inner = x.shape[(at + 1)..<(x.rank - 1)].reduce(1, *)
    let values = x.doubles()
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    for block in 0..<outer {
      for lane in 0..<inner {
        var line = [Complex](repeating: Complex(0, 0), count: length)
        for n in 0..<min(size, length) {
          let place = ((block * size + n) * inner + lane) * parts
          line[n] = Complex(values[place], parts == 2 ? values[place + 1] : 0)
        }
        // The other half of a real signal's frequencies.
        if isOneSided && isInverse {
          for n in size..<max(size, length) where length - n < size {
            line[n] = Complex(line[length - n].real, -line[length - n].imaginary)
          }
        }
        let frequencies = FourierTransform.run(line, isInverse: isInverse)
        for n in 0..<kept {
          let place = ((block * kept + n) * inner + lane) * outParts
          result[place] = frequencies[n].real
          if outParts == 2 { result[place + 1] = frequencies[n].imaginary }
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }
}
