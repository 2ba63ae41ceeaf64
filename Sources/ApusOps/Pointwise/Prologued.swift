// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// An operator over rows whose first operand is an expression that it computes as it reads.
///
/// The operands are the expression's, which broadcast to the shape of the first of them, then the
/// operator's others.
public struct Prologued: AnchorOperator, CostedOperator, TolerantOperator {
  public static let name = "Prologued"
  /// The operator that reads the expression.
  public var anchor: any Operator
  /// An element of its first operand, from the leading operands.
  public var prologue: ScalarExpr
  /// The number of leading operands that are the expression's.
  public var prologueInputCount: Int

  public init(anchor: any Operator, prologue: ScalarExpr, prologueInputCount: Int) {
    self.anchor = anchor
    self.prologue = prologue
    self.prologueInputCount = prologueInputCount
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    anchor = try attributes.op("anchor")
    prologue = try attributes.expression("prologue")
    prologueInputCount = try attributes.int("prologueInputCount")
    guard 1..<4096 ~= prologueInputCount, prologue.inputCount <= prologueInputCount else {
      throw ApusError(
        .invalidAttribute, "the operand count of Prologued does not fit its expression")
    }
  }

  public var attributes: Attributes {
    [
      "anchor": .op(anchor), "prologue": .expression(prologue),
      "prologueInputCount": .int(prologueInputCount),
    ]
  }

  public func ownsEpilogue(_ inputs: [TensorType?]) -> Bool {
    (anchor as? any AnchorOperator)?.ownsEpilogue(anchorTypes(inputs)) ?? false
  }
  public var epilogueOperandLimit: Int {
    (anchor as? any AnchorOperator)?.epilogueOperandLimit ?? 0
  }

  private func checkCount(_ count: Int) throws(ApusError) {
    guard prologueInputCount > 0, count >= prologueInputCount else {
      throw ApusError(
        .typeMismatch, "\(prologueInputCount) operands are needed, \(count) are given")
    }
  }

  /// The type of the anchor's first operand.
  private func operandType(_ types: [TensorType]) throws(ApusError) -> TensorType {
    let type = try PointwiseReference.resultType(prologue, types.map(\.dataType))
    let dims = try PointwiseReference.dims(types)
    if let dims, let first = types.first?.dims, first != dims {
      throw ApusError(.typeMismatch, "a prologue's operands do not broadcast to \(types[0])")
    }
    return TensorType(type, dims)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try checkCount(inputs.count)
    var types: [TensorType] = []
    for index in 0..<prologueInputCount { types.append(try inputs.tensor(index)) }
    let others = inputs.types.dropFirst(prologueInputCount)
    return try anchor.infer(
      InferenceInputs(
        types: [.tensor(try operandType(types))] + others,
        constants: [nil] + inputs.constants.dropFirst(prologueInputCount),
        symbolic: [nil] + inputs.symbolic.dropFirst(prologueInputCount),
        outputCount: inputs.outputCount, scope: inputs.scope))
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try checkCount(inputs.count)
    var tensors: [Tensor] = []
    for index in 0..<prologueInputCount { tensors.append(try inputs.required(index)) }
    let type = try operandType(tensors.map(\.type))
    let first = try PointwiseReference.evaluate(
      prologue, type.dataType, tensors, shape: tensors[0].shape)
    return try anchor.evaluate([.tensor(first)] + inputs.dropFirst(prologueInputCount))
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let elements = (outputs.first?.shape ?? []).reduce(1.0) { $0 * Double($1) }
    return anchor.cost(inputs: anchorTypes(inputs), outputs: outputs).operations
      + elements * Double(prologue.nodeCount)
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    anchor.tolerance(type, inputs: anchorTypes(inputs))
  }

  private func anchorTypes(_ inputs: [TensorType?]) -> [TensorType?] {
    let types = inputs.prefix(max(0, prologueInputCount)).compactMap { $0 }
    return [try? operandType(types)] + inputs.dropFirst(max(0, prologueInputCount))
  }
}

extension Prologued: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard let anchor = anchor as? any BatchwiseOperator, let first = operands.first else {
      return false
    }
    return operands.prefix(prologueInputCount).broadcastBatches(to: resultRank)
      && anchor.isBatchwise(
        [first] + operands.dropFirst(prologueInputCount), resultRank: resultRank)
  }
}
