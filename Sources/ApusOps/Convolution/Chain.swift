// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Operators one after the other, of which only the last one's result is wanted: kernels may compute them
/// together, a part at a time.
///
/// The operands are operand 0 of the first operator, then the other operands of each; operand 0 of the
/// operators behind the first is the result before. Every operator has one result.
public struct Chain: CostedOperator, TolerantOperator {
  public static let name = "Chain"
  /// The operators.
  public var stages: [any Operator]
  /// How many operands each has besides operand 0.
  public var operandCounts: [Int]

  /// Chains of more operators are refused.
  static let mostStages = 16

  /// A chain; as many counts as operators.
  public init(_ stages: [any Operator], operandCounts: [Int]) {
    self.stages = stages
    self.operandCounts = operandCounts
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    operandCounts = try attributes.ints("operandCounts")
    guard !operandCounts.isEmpty, operandCounts.count <= Self.mostStages,
      operandCounts.allSatisfy({ (0..<4096).contains($0) })
    else {
      throw ApusError(
        .invalidAttribute, "'operandCounts' of Chain has 1 to \(Self.mostStages) counts")
    }
    stages = []
    for index in operandCounts.indices { stages.append(try attributes.op("stage\(index)")) }
  }

  public var attributes: Attributes {
    var all: Attributes = ["operandCounts": .ints(operandCounts)]
    for (index, stage) in stages.enumerated() { all["stage\(index)"] = .op(stage) }
    return all
  }

  /// Which of the chain's operands are a stage's operands 1 and up.
  public func operands(of stage: Int) -> Range<Int> {
    let first = operandCounts.prefix(stage).reduce(1, +)
    return first..<first + operandCounts[stage]
  }

  /// Calls `body` with each stage's number and operands; what it returns is operand 0 of the next stage.
  private func run<Operand>(
    _ operands: [Operand], _ body: (Int, [Operand]) throws(ApusError) -> Operand
  ) throws(ApusError) -> Operand {
    guard let first = operands.first, stages.count == operandCounts.count, !stages.isEmpty,
      operands.count == operandCounts.reduce(1, +)
    else {
      throw ApusError(
        .typeMismatch, "\(operandCounts.reduce(1, +)) operands are needed, \(operands.count) are given")
    }
    var value = first
    for stage in stages.indices {
      value = try body(stage, [value] + operands[self.operands(of: stage)])
    }
    return value
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard inputs.outputCount == 1 else { throw ApusError(.typeMismatch, "a chain has one result") }
    let constants = inputs.types.indices.map { inputs.constant($0) }
    let operands = zip(inputs.types, constants).map { (type: $0, constant: $1) }
    let result = try run(operands) { (stage, operands) throws(ApusError) in
      let types = try stages[stage].infer(
        InferenceInputs(
          types: operands.map(\.type), constants: operands.map(\.constant),
          scope: "\(inputs.scope).\(stage)"))
      return (types.first, nil)
    }
    guard let type = result.type else {
      throw ApusError(.typeMismatch, "the last operator of a chain has no result")
    }
    return [type]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let result = try run(inputs) { (stage, operands) throws(ApusError) in
      try stages[stage].evaluate(operands).first
    }
    guard let result else {
      throw ApusError(.typeMismatch, "the last operator of a chain has no result")
    }
    return [result]
  }

  /// The types of the stages' results.
  ///
  /// - Throws: What inference throws; `type-mismatch` when a result is no tensor.
  public func resultTypes(inputs: [TensorType?]) throws(ApusError) -> [TensorType] {
    var results: [TensorType] = []
    _ = try run(inputs) { (stage, operands) throws(ApusError) in
      let types = try stages[stage].infer(
        InferenceInputs(types: operands.map { $0.map { .tensor($0) } }))
      guard case .tensor(let type)? = types.first else {
        throw ApusError(.typeMismatch, "a result within a chain is no tensor")
      }
      results.append(type)
      return type
    }
    return results
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard let results = try? resultTypes(inputs: inputs) else { return 0 }
    var sum = 0.0
    for (index, stage) in stages.enumerated() {
      let first = index == 0 ? inputs[0] : results[index - 1]
      sum += stage.cost(inputs: [first] + inputs[operands(of: index)], outputs: [results[index]])
        .operations
    }
    return sum
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    stages.reduce(0) { $0 + $1.tolerance(type, inputs: inputs) }
  }
}

extension Chain: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    let result = try? run(operands) { (stage, operands) throws(ApusError) in
      guard let op = stages[stage] as? any BatchwiseOperator,
        op.isBatchwise(operands, resultRank: resultRank)
      else { throw ApusError(.internalError, "members of the batch meet") }
      return BatchOperand(rank: resultRank, isBatched: true)
    }
    return result != nil
  }
}
