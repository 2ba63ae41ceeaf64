// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Typing and meaning of every elementwise operator: both follow from its expression.
extension PointwiseOperator {
  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    var types: [TensorType] = []
    for index in 0..<inputs.count { types.append(try inputs.tensor(index)) }
    let expression = body(types.map(\.dataType))
    guard expression.inputCount <= types.count else {
      throw ApusError(
        .typeMismatch, "\(types.count) operands are given, \(expression.inputCount) are needed")
    }
    let dataType = try PointwiseReference.resultType(expression, types.map(\.dataType))
    return [typed(dataType, try PointwiseReference.dims(types))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var tensors: [Tensor] = []
    for index in inputs.indices { tensors.append(try inputs.required(index)) }
    let expression = body(tensors.map(\.dataType))
    let type = try PointwiseReference.resultType(expression, tensors.map(\.dataType))
    return [.tensor(try PointwiseReference.evaluate(expression, type, tensors))]
  }

  /// The expression when some operands may be omitted; nil where that has no meaning. Operands of
  /// the expression keep their positions.
  package func body(operands: [DataType?]) -> ScalarExpr? {
    let present = operands.compactMap { $0 }
    if present.count == operands.count { return body(present) }
    return (self as? Clip)?.expression(has: operands.map { $0 != nil })
  }
}

extension PermutableOperator where Self: PointwiseOperator {
  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    PointwiseReference.permuted(self, permutation, inputs)
  }
}

/// The reference evaluation shared by all elementwise operators.
package enum PointwiseReference {
  /// The element type of an expression's result.
  static func resultType(_ expression: ScalarExpr, _ types: [DataType]) throws(ApusError)
    -> DataType
  {
    guard expression.inputCount <= types.count else {
      throw ApusError(
        .typeMismatch, "\(expression.inputCount) operands are needed, \(types.count) are given")
    }
    if let bad = types.first(where: { $0 == .string || $0.isComplex }) {
      throw ApusError(.typeMismatch, "elementwise arithmetic is not defined on \(bad)")
    }
    guard let type = expression.dataType(inputs: types) else {
      let list = types.map(\.description).joined(separator: ", ")
      throw ApusError(
        .typeMismatch, "operands of types \(list) cannot be combined",
        hint: "elementwise operators need operands of one type; insert a Cast")
    }
    return type
  }

  /// The broadcast dimensions of operands; nil when a rank is unknown.
  static func dims(_ types: [TensorType]) throws(ApusError) -> [Dim]? {
    let known = types.compactMap(\.dims)
    return known.count == types.count ? try Broadcasting.dims(known) : nil
  }

  /// Evaluates over broadcast operands; `shape` is the result's shape when it is not the operands'
  /// common one.
  static func evaluate(
    _ expression: ScalarExpr, _ type: DataType, _ tensors: [Tensor], shape: [Int]? = nil
  ) throws(ApusError) -> Tensor {
    var target = try Broadcasting.shape(tensors.map(\.shape))
    if let shape {
      guard try Broadcasting.shape([target, shape]) == shape else {
        throw ApusError(.typeMismatch, "operands of shape \(target) do not broadcast to \(shape)")
      }
      target = shape
    }
    let count = try Tensor.checkedCount(target)
    let operands = tensors.map { Broadcasting.broadcastElements($0, to: target) }
    let result = try ScalarEvaluator(operands: operands, count: count)
      .evaluate(expression, expected: type)
    switch result {
    case .real(let values, _): return try Tensor(values, type, shape: target)
    case .whole(let values, _): return try Tensor(values, type, shape: target)
    }
  }

  /// The same operator on permuted operands, if every operand is either of full rank or a single
  /// element.
  static func permuted(
    _ op: any Operator, _ permutation: [Int], _ inputs: InferenceInputs
  ) -> PermutedForm? {
    var permutes: [Bool] = []
    for type in inputs.types {
      guard let type else {
        permutes.append(false)
        continue
      }
      guard let dims = type.tensor?.dims else { return nil }
      if dims.count == permutation.count {
        permutes.append(true)
      } else {
        guard dims.count < permutation.count, dims.allSatisfy({ $0 == 1 }) else { return nil }
        permutes.append(false)
      }
    }
    guard permutes.contains(true), Axis.isPermutation(permutation, rank: permutation.count) else {
      return nil
    }
    return PermutedForm(op: op, permutesInput: permutes)
  }

  /// Shape arithmetic on integer vectors of at most one dimension.
  static func symbolic(
    _ inputs: InferenceInputs, _ function: (Dim, Dim) -> Dim?
  ) -> [[Dim]?] {
    guard inputs.count == 2, let a = integerDims(inputs, 0), let b = integerDims(inputs, 1),
      a.count == b.count || a.count == 1 || b.count == 1, !a.isEmpty, !b.isEmpty
    else { return [nil] }
    var result: [Dim] = []
    for index in 0..<max(a.count, b.count) {
      guard let value = function(a[a.count == 1 ? 0 : index], b[b.count == 1 ? 0 : index]) else {
        return [nil]
      }
      result.append(value)
    }
    return [result]
  }

  /// The elements up to symbols of an integer operand of rank zero or one.
  static func integerDims(_ inputs: InferenceInputs, _ index: Int) -> [Dim]? {
    guard index < inputs.count, let type = inputs.types[index]?.tensor, type.dataType.isInteger,
      let rank = type.rank, rank <= 1
    else { return nil }
    return inputs.dims(index)
  }
}

/// An elementwise operator without attributes.
public protocol PlainPointwiseOperator: PointwiseOperator, PermutableOperator {
  /// Creates the operator.
  init()
}

extension PlainPointwiseOperator {
  public init(reading attributes: inout AttributeReader) throws(ApusError) { self.init() }
  public var attributes: Attributes { Attributes() }
}
