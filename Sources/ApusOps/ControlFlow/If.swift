// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Runs one of two graphs (ONNX `If`): operands are the condition, then the captured values; both
/// graphs take exactly the captured values, in that order.
public struct If: ControlFlowOperator {
  public static let name = "If"
  /// The graph for true, then the graph for false.
  public var bodies: [Graph]

  /// Creates the operator.
  public init(thenBranch: Graph, elseBranch: Graph) { bodies = [thenBranch, elseBranch] }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    bodies = [try attributes.graph("then_branch"), try attributes.graph("else_branch")]
  }

  public var attributes: Attributes {
    ["then_branch": .graph(bodies[0]), "else_branch": .graph(bodies[1])]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard inputs.count >= 1 else { throw ApusError(.typeMismatch, "the condition is missing") }
    let types = bodies.map { body in body.outputs.map { body[$0].type } }
    guard types[0].count == types[1].count else {
      throw ApusError(
        .typeMismatch,
        "the branches have \(types[0].count) and \(types[1].count) results")
    }
    return types[0].indices.map { index in
      Self.merged(types[0][index], types[1][index], inputs, index)
    }
  }

  /// A type that both belong to.
  static func merged(_ a: ValueType, _ b: ValueType, _ inputs: InferenceInputs, _ index: Int)
    -> ValueType
  {
    guard case .tensor(let x) = a, case .tensor(let y) = b else { return a }
    guard let p = x.dims, let q = y.dims, p.count == q.count else { return typed(x.dataType, nil) }
    return typed(
      x.dataType,
      p.indices.map { axis in
        p[axis].value != nil && p[axis] == q[axis]
          ? p[axis] : inputs.freshDim("result\(index).\(axis)")
      })
  }

  public func execute(
    _ inputs: [RuntimeValue?],
    run: (Int, [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] {
    let condition = try inputs.required(0)
    guard condition.count == 1 else {
      throw ApusError(.typeMismatch, "the condition has \(condition.count) elements, not one")
    }
    return try run(condition.integers()[0] != 0 ? 0 : 1, Array(inputs.dropFirst()))
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try execute(inputs) { (body, operands) throws(ApusError) in
      try ReferenceInterpreter.run(bodies[body], inputs: operands)
    }
  }
}
