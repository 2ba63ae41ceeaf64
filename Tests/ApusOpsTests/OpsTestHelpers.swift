// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A `float32` tensor from literals.
func f(_ values: [Float], _ shape: [Int]) throws -> RuntimeValue {
  .tensor(try Tensor(values, shape: shape))
}

/// An `int64` tensor from literals.
func i(_ values: [Int64], _ shape: [Int], _ type: DataType = .int64) throws -> RuntimeValue {
  .tensor(try Tensor(values, type, shape: shape))
}

/// Runs an operator after checking that inference from shapes and constants agrees with the result.
func run(_ op: any Operator, _ inputs: [RuntimeValue?], outputs: Int = 1) throws -> [Tensor] {
  let results = try op.evaluate(inputs).compactMap(\.tensor)
  let types = try op.infer(
    InferenceInputs(
      types: inputs.map { $0?.type }, constants: inputs.map { $0?.tensor }, outputCount: outputs))
  for (type, result) in zip(types, results) {
    let inferred = type.tensor
    guard inferred?.dataType == result.dataType,
      inferred?.dims.map({ $0.count == result.rank }) ?? true,
      zip(inferred?.dims ?? [], result.shape).allSatisfy({ $0.value == nil || $0.value == $1 })
    else { throw ApusError(.internalError, "inferred \(type), computed \(result.type)") }
  }
  return results
}

/// Whether an operator refuses these operands with an error (and does not trap).
func refuses(_ op: any Operator, _ inputs: [RuntimeValue?]) -> Bool {
  do {
    _ = try op.evaluate(inputs)
    return false
  } catch {
    return true
  }
}

/// Whether inference refuses operands of these shapes (all of type `float32`).
func inferRefuses(_ op: any Operator, _ shapes: [[Int]]) -> Bool {
  do {
    _ = try op.infer(
      InferenceInputs(types: shapes.map { .tensor(TensorType(.float32, shape: $0)) }))
    return false
  } catch {
    return true
  }
}
