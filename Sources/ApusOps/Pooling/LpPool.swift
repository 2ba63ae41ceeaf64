// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The p-norm of the elements under a window (ONNX `LpPool`).
public struct LpPool: ChannelsLastConvertible, CostedOperator {
  public static let name = "LpPool"
  public var pool: PoolAttributes
  public var p: Int

  /// Creates the operator.
  public init(_ pool: PoolAttributes, p: Int = 2) {
    self.pool = pool
    self.p = p
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    pool = try PoolAttributes(reading: &attributes)
    p = try attributes.int("p", 2)
  }

  public var attributes: Attributes {
    var result = pool.attributes
    result["p"] = .int(p)
    return result
  }

  public var isChannelsLast: Bool { pool.channelsLast }

  public func channelsLast() -> (any Operator)? {
    var copy = self
    copy.pool.channelsLast = true
    return copy
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard p > 0 else { throw ApusError(.invalidAttribute, "'p' is \(p); it must be positive") }
    let result = try pool.infer(inputs)
    guard result.dataType.isFloat else { throw ApusError(.typeMismatch, "LpPool of \(result)") }
    return [.tensor(result)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let count = (outputs.first?.shape ?? []).reduce(2.0) { $0 * Double($1) }
    return count * pool.kernel.reduce(1.0) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let values = x.doubles()
    let count = try Tensor.checkedCount(inferred[0].tensor?.shape ?? [])
    var norms = [Double](repeating: 0, count: count)
    let shape = try pool.forEachWindow(x.shape) { output, covered in
      var sum = 0.0
      for index in 0..<covered.count {
        let value = abs(values[covered[index]])
        sum += p == 1 ? value : (p == 2 ? value * value : RealMath.power(value, Double(p)))
      }
      norms[output] =
        p == 1 ? sum : (p == 2 ? sum.squareRoot() : RealMath.power(sum, 1 / Double(p)))
    }
    return [.tensor(try Tensor(norms, x.dataType, shape: shape))]
  }
}
