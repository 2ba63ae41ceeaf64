// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Fourier transforms of stretches of a signal (ONNX `STFT`): operands the signal `[batch, length, 1 or 2]`,
/// the step from one stretch to the next, the window, the stretches' length.
public struct STFT: DataDependentShape, TolerantOperator {
  public static let name = "STFT"
  /// Whether only the frequencies that a real signal's others follow from are given.
  public var isOneSided: Bool

  /// Creates the operator.
  public init(isOneSided: Bool = true) { self.isOneSided = isOneSided }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    isOneSided = try attributes.bool("one_sided", true)
  }

  public var attributes: Attributes { ["one_sided": .bool(isOneSided)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1, 3].filter { $0 < count } }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-11 : (type == .float32 ? 1e-5 : 4e-3)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    guard let dims = x.dims else { return [.tensor(x)] }
    guard dims.count == 3 else { throw ApusError(.typeMismatch, "a signal of shape \(x)") }
    var length = inputs.has(3) ? inputs.ints(3)?.first : nil
    if !inputs.has(3), inputs.has(2) { length = try inputs.tensor(2).dims?.first?.value }
    let frequencies = length.map { isOneSided ? $0 / 2 + 1 : $0 }
    var frames: Int?
    if let length, let step = inputs.ints(1)?.first, step > 0, let size = dims[1].value, size >= length {
      frames = (size - length) / step + 1
    }
    return [
      typed(
        x.dataType,
        [
          dims[0], frames.map { Dim($0) } ?? inputs.freshDim("frames"),
          frequencies.map { Dim($0) } ?? inputs.freshDim("frequencies"), 2,
        ])
    ]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    guard x.rank == 3, x.dataType.isFloat, x.shape[2] == 1 || x.shape[2] == 2,
      let step = try inputs.required(1).ints().first, step > 0
    else { throw ApusError(.typeMismatch, "a signal \(x.type) or a step that is not positive") }
    let window = try inputs.optional(2)?.doubles()
    let (batch, size, parts) = (x.shape[0], x.shape[1], x.shape[2])
    let length = try inputs.optional(3)?.ints().first ?? window?.count ?? size
    guard length > 0, length <= size, window.map({ $0.count == length }) ?? true else {
      throw ApusError(.execution, "stretches of \(length) in a signal of \(size)")
    }
    let frames = (size - length) / step + 1
    let kept = isOneSided ? length / 2 + 1 : length
    let shape = [batch, frames, kept, 2]
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    let values = x.doubles()
    for b in 0..<batch {
      for frame in 0..<frames {
        let line = (0..<length).map { n -> Complex in
          let place = (b * size + frame * step + n) * parts
          let weight = window?[n] ?? 1
          return Complex(values[place] * weight, parts == 2 ? values[place + 1] * weight : 0)
        }
        let frequencies = FourierTransform.run(line, isInverse: false)
        for n in 0..<kept {
          let place = ((b * frames + frame) * kept + n) * 2
          result[place] = frequencies[n].real
          result[place + 1] = frequencies[n].imaginary
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }
}
