// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Several elementwise operators in one: an expression over its operands.
public struct Pointwise: PointwiseOperator, PermutableOperator {
  public static let name = "Pointwise"
  /// What an element of the result is.
  public var expression: ScalarExpr
  /// The element type of the result.
  public var resultType: DataType

  public init(expression: ScalarExpr, resultType: DataType) {
    self.expression = expression
    self.resultType = resultType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    expression = try attributes.expression("expression")
    resultType = try attributes.type("resultType")
  }

  public var attributes: Attributes {
    ["expression": .expression(expression), "resultType": .type(resultType)]
  }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    guard let type = expression.dataType(inputs: inputs) else {
      return expression.isConstant ? .cast(expression, resultType) : expression
    }
    return type == resultType ? expression : .cast(expression, resultType)
  }
}

/// An anchor operator whose first result passes through an epilogue while it is still at hand.
///
/// The operands are the anchor's, then the epilogue's, which are broadcast to the result's shape.
public struct Fused: SampledOperator, CostedOperator, TolerantOperator {
  public static let name = "Fused"
  /// The operator that computes the results.
  public var anchor: any Operator
  /// The number of leading operands that are the anchor's.
  public var anchorInputCount: Int
  /// What happens to each element of result 0.
  public var epilogue: Epilogue

  public init(anchor: any Operator, anchorInputCount: Int, epilogue: Epilogue) {
    self.anchor = anchor
    self.anchorInputCount = anchorInputCount
    self.epilogue = epilogue
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    anchor = try attributes.op("anchor")
    anchorInputCount = try attributes.int("anchorInputCount")
    epilogue = Epilogue(
      try attributes.expression("epilogue"), extraCount: try attributes.int("extraCount"))
    guard anchorInputCount >= 0, epilogue.extraCount >= 0, epilogue.extraCount < 4096,
      epilogue.expression.inputCount <= epilogue.extraCount + 1
    else {
      throw ApusError(.invalidAttribute, "the operand counts of Fused do not fit its epilogue")
    }
  }

  public var attributes: Attributes {
    [
      "anchor": .op(anchor), "anchorInputCount": .int(anchorInputCount),
      "epilogue": .expression(epilogue.expression), "extraCount": .int(epilogue.extraCount),
    ]
  }

  private func checkCount(_ count: Int) throws(ApusError) {
    guard anchorInputCount >= 0, epilogue.extraCount >= 0, count >= epilogue.extraCount,
      count - epilogue.extraCount == anchorInputCount
    else {
      throw ApusError(
        .typeMismatch,
        "\(anchorInputCount) + \(epilogue.extraCount) operands are needed, \(count) are given")
    }
  }

  /// What inference of the anchor alone may look at.
  private func anchorInputs(_ inputs: InferenceInputs) -> InferenceInputs {
    InferenceInputs(
      types: Array(inputs.types.prefix(anchorInputCount)),
      constants: Array(inputs.constants.prefix(anchorInputCount)),
      symbolic: Array(inputs.symbolic.prefix(anchorInputCount)),
      outputCount: inputs.outputCount, scope: inputs.scope)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try checkCount(inputs.count)
    var results = try anchor.infer(anchorInputs(inputs))
    guard case .tensor(let first)? = results.first else {
      throw ApusError(.typeMismatch, "result 0 of \(anchor.name) is no tensor")
    }
    var types = [first]
    for index in 0..<epilogue.extraCount {
      types.append(try inputs.tensor(anchorInputCount + index))
    }
    let type = try PointwiseReference.resultType(epilogue.expression, types.map(\.dataType))
    if let dims = first.dims, let common = try PointwiseReference.dims(types),
      common.count != dims.count
        || zip(common, dims).contains(where: { $1 == 1 && $0 != 1 && $0.value != nil })
    {
      throw ApusError(.typeMismatch, "an epilogue operand does not broadcast to \(first)")
    }
    results[0] = typed(type, first.dims)
    return results
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try checkCount(inputs.count)
    var results = try anchor.evaluate(Array(inputs.prefix(anchorInputCount)))
    guard let first = results.first?.tensor else {
      throw ApusError(.typeMismatch, "result 0 of \(anchor.name) is no tensor")
    }
    var tensors = [first]
    for index in 0..<epilogue.extraCount {
      tensors.append(try inputs.required(anchorInputCount + index))
    }
    let type = try PointwiseReference.resultType(epilogue.expression, tensors.map(\.dataType))
    results[0] = .tensor(
      try PointwiseReference.evaluate(epilogue.expression, type, tensors, shape: first.shape))
    return results
  }

  public var canSample: Bool { (anchor as? any SampledOperator)?.canSample ?? false }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    try checkCount(inputs.count)
    guard let sampled = anchor as? any SampledOperator else {
      throw ApusError(.internalError, "\(anchor.name) cannot be sampled")
    }
    let own = Array(inputs.prefix(anchorInputCount))
    let types = try anchor.infer(
      InferenceInputs(types: own.map { $0.map { .tensor($0.type) } }, constants: own))
    guard case .tensor(let first)? = types.first, let shape = first.shape else {
      throw ApusError(.internalError, "the shape of \(anchor.name) is not known before it has run")
    }
    let count = try Tensor.checkedCount(shape)
    guard linearIndices.allSatisfy({ $0 >= 0 && $0 < count }) else {
      throw ApusError(.invalidArgument, "a sample lies outside the result \(shape)")
    }
    let values = try sampled.evaluateSamples(own, at: linearIndices)
    let samples = [linearIndices.count]
    var operands = [try Tensor(values, first.dataType, shape: samples)]
    let resultStrides = CopyPlan.rowMajorStrides(shape)
    for index in 0..<epilogue.extraCount {
      guard let extra = inputs[anchorInputCount + index] else {
        throw ApusError(.typeMismatch, "operand \(anchorInputCount + index) is missing")
      }
      guard try Broadcasting.shape([extra.shape, shape]) == shape else {
        throw ApusError(.typeMismatch, "\(extra.type) does not broadcast to \(shape)")
      }
      let strides = Broadcasting.strides(extra.shape, to: shape)
      var picked = try ElementBuffer(extra.dataType, shape: samples)
      picked.copy(from: extra, count: linearIndices.count) { sample in
        var source = 0
        for axis in shape.indices {
          source += linearIndices[sample] / resultStrides[axis] % shape[axis] * strides[axis]
        }
        return (sample, source)
      }
      operands.append(try picked.finished())
    }
    let type = try PointwiseReference.resultType(epilogue.expression, operands.map(\.dataType))
    return try PointwiseReference.evaluate(epilogue.expression, type, operands).doubles()
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let elements = (outputs.first?.shape ?? []).reduce(1.0) { $0 * Double($1) }
    let own = Array(inputs.prefix(max(0, anchorInputCount)))
    let work = anchor.cost(inputs: own, outputs: outputs).operations
    // What is done to results that are in registers already is no work of a product.
    return anchor is any CostedOperator ? work : work + elements * Double(epilogue.expression.nodeCount)
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    anchor.tolerance(type, inputs: Array(inputs.prefix(max(0, anchorInputCount))))
  }
}

extension Fused: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard let anchor = anchor as? any BatchwiseOperator else { return false }
    return anchor.isBatchwise(Array(operands.prefix(anchorInputCount)), resultRank: resultRank)
      && operands.dropFirst(anchorInputCount).broadcastBatches(to: resultRank)
  }
}
