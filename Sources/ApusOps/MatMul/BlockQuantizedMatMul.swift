// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Product with weights of four bits: `A x W`, `W[k, n] = (Q[k, n] - Z[k / block, n]) * S[k / block, n]`.
///
/// Operands are A `[..., K]` of single precision, Q `[K, N]` of `uint4`, the scales S of single or half
/// precision and, if given, the zero points Z of `uint8`, both `[ceil(K / block), N]`; without Z, 8 stands
/// for zero. The last block may be shorter. Each weight is rounded to single precision.
public struct BlockQuantizedMatMul: AnchorOperator, CostedOperator, TolerantOperator, SampledOperator {
  public static let name = "BlockQuantizedMatMul"
  /// Rows of W that share the scales.
  public var block: Int
  /// What stands for zero where no zero points are given.
  public static let usualZero = 8

  /// Creates the operator.
  public init(block: Int) { self.block = block }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    block = try attributes.int("block")
    guard block > 0 else {
      throw ApusError(.invalidAttribute, "blocks of \(block) weights")
    }
  }

  public var attributes: Attributes { ["block": .int(block)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let a = try inputs.tensor(0)
    let q = try inputs.tensor(1)
    let scales = try inputs.tensor(2)
    let zeros = inputs.has(3) ? try inputs.tensor(3) : nil
    guard a.dataType == .float32, q.dataType == .uint4,
      scales.dataType == .float32 || scales.dataType == .float16,
      zeros.map({ $0.dataType == .uint8 }) ?? true
    else {
      throw ApusError(.typeMismatch, "no product of \(a) and blocks of \(q) with scales \(scales)")
    }
    guard let left = a.dims, let right = q.dims else { return [typed(.float32, nil)] }
    guard right.count == 2 else {
      throw ApusError(.typeMismatch, "blocks of weights form a matrix, not \(q)")
    }
    if let k = right[0].value, let n = right[1].value {
      let wanted = [k / block + (k % block == 0 ? 0 : 1), n]
      for type in [scales, zeros] {
        guard let shape = type?.shape, shape != wanted else { continue }
        throw ApusError(
          .typeMismatch, "scales or zero points of shape \(shape) for \(q) in blocks of \(block)")
      }
    }
    return [typed(.float32, try MatMul.resultDims(left, right))]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    MatMul().operations(inputs: inputs, outputs: outputs)
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    MatMul().tolerance(type, inputs: inputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    [.tensor(try product(inputs).evaluate())]
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    try product(inputs.map { $0.map { .tensor($0) } }).samples(at: linearIndices)
  }

  private func product(_ inputs: [RuntimeValue?]) throws(ApusError) -> ReferenceProduct {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let weights = try weights(
      try inputs.required(1), scales: try inputs.required(2), zeros: try inputs.optional(3))
    return try ReferenceProduct(try inputs.required(0), weights)
  }

  /// The weights in single precision.
  ///
  /// - Throws: `type-mismatch` when the sizes do not fit.
  public func weights(_ numbers: Tensor, scales: Tensor, zeros: Tensor?) throws(ApusError) -> Tensor {
    guard numbers.dataType == .uint4, numbers.rank == 2 else {
      throw ApusError(.typeMismatch, "\(numbers.type) is no matrix of four-bit numbers")
    }
    let (k, n) = (numbers.shape[0], numbers.shape[1])
    let count = (k / block + (k % block == 0 ? 0 : 1)) * n
    guard scales.count == count, zeros.map({ $0.count == count }) ?? true else {
      throw ApusError(.typeMismatch, "\(scales.count) scales for \(numbers.type) in blocks of \(block)")
    }
    let result = try Tensor(.float32, shape: [k, n])
    let factors = scales.floats()
    let offsets = zeros?.integers().map(Float.init)
    let bytes = numbers.bytes
    result.mutableBytes.withMemoryRebound(to: Float.self) { out in
      var index = 0
      for row in 0..<k {
        let first = row / block * n
        for column in 0..<n {
          let number = bytes[index / 2] >> (index % 2 == 0 ? 0 : 4) & 15
          let zero = offsets?[first + column] ?? Float(Self.usualZero)
          out[index] = (Float(number) - zero) * factors[first + column]
          index += 1
        }
      }
    }
    return result
  }
}

extension BlockQuantizedMatMul: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard let a = operands.first ?? nil, a.isBatched, a.rank >= 2 else { return false }
    return operands.dropFirst().allSatisfy { $0?.isBatched != true }
  }
}
