// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The same bits as elements of another type of the same width (ONNX `BitCast`).
public struct BitCast: Operator {
  public static let name = "BitCast"
  public var to: DataType

  /// Creates the operator.
  public init(to: DataType) { self.to = to }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    to = try attributes.type("to")
  }

  public var attributes: Attributes { ["to": .type(to)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType != .string, to != .string, x.dataType.bitWidth == to.bitWidth else {
      throw ApusError(.typeMismatch, "the bits of \(x.dataType) are no \(to)")
    }
    return [typed(to, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let result = try Tensor(to, shape: x.shape)
    if x.byteCount > 0, let source = x.bytes.baseAddress {
      result.mutableBytes.baseAddress?.copyMemory(from: source, byteCount: x.byteCount)
    }
    return [.tensor(result)]
  }
}
