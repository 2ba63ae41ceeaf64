// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// `[N, C, H, W]` in channels-last order, as `[N, H, W, channels]` of another type: channels that the
/// operand does not have are zeros. What becomes of an image in front of a kernel that wants its pixels
/// filled up.
public struct PlanesToPixels: Operator {
  public static let name = "PlanesToPixels"
  /// Channels of the result, at least those of the operand.
  public var channels: Int
  /// The element type of the result.
  public var to: DataType

  /// Creates the operator.
  public init(channels: Int, to: DataType) {
    self.channels = channels
    self.to = to
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    channels = try attributes.int("channels")
    to = try attributes.type("to")
    guard channels > 0, channels < 1 << 24, to.isFloat else {
      throw ApusError(.invalidAttribute, "\(channels) channels of \(to) are no pixel")
    }
  }

  public var attributes: Attributes { ["channels": .int(channels), "to": .type(to)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    guard let dims = x.dims else { return [typed(to, nil)] }
    guard dims.count == 4, (dims[1].value ?? 1) <= channels else {
      throw ApusError(.typeMismatch, "no image of at most \(channels) channels: \(x)")
    }
    return [typed(to, [dims[0], dims[2], dims[3], Dim(channels)])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let (images, planes, pixels) = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
    let source = x.doubles()
    let shape = [images, x.shape[2], x.shape[3], channels]
    var values = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    for image in 0..<images {
      for plane in 0..<planes {
        for pixel in 0..<pixels {
          values[(image * pixels + pixel) * channels + plane] =
            source[(image * planes + plane) * pixels + pixel]
        }
      }
    }
    return [.tensor(try Tensor(values, to, shape: shape))]
  }
}

extension PlanesToPixels: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool { true }
}
