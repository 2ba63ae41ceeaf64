// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Repeats a graph (ONNX `Loop`): operands are the trip count (may be omitted), the condition (may be
/// omitted), `carriedCount` carried values, then captured values.
///
/// The body takes iteration number, condition, carried values, captured values; it returns condition,
/// carried values, then one element of each stacked result. Results are the final carried values and
/// the stacked results.
public struct Loop: ControlFlowOperator {
  public static let name = "Loop"
  public var bodies: [Graph]
  public var carriedCount: Int

  /// Creates the operator.
  public init(body: Graph, carriedCount: Int) {
    bodies = [body]
    self.carriedCount = carriedCount
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    bodies = [try attributes.graph("body")]
    carriedCount = try attributes.int("carried_count")
    guard carriedCount >= 0, carriedCount < bodies[0].outputs.count else {
      throw ApusError(.invalidAttribute, "'carried_count' is \(carriedCount)")
    }
  }

  public var attributes: Attributes {
    ["body": .graph(bodies[0]), "carried_count": .int(carriedCount)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let body = bodies[0]
    guard body.outputs.count > carriedCount, inputs.count >= 2 + carriedCount else {
      throw ApusError(
        .typeMismatch,
        "the body has \(body.outputs.count) results and the node \(inputs.count) operands for \(carriedCount) carried values"
      )
    }
    return body.outputs.indices.dropFirst().map { index in
      let type = body[body.outputs[index]].type
      if index <= carriedCount {
        let initial = inputs.types[1 + index] ?? type
        return If.merged(type, initial, inputs, index)
      }
      guard case .tensor(let tensor) = type else { return type }
      let count = inputs.freshDim("iterations")
      return typed(
        tensor.dataType,
        tensor.dims.map { dims in
          [count]
            + dims.indices.map {
              dims[$0].value == nil ? inputs.freshDim("stacked\(index).\($0)") : dims[$0]
            }
        })
    }
  }

  public func execute(
    _ inputs: [RuntimeValue?],
    run: (Int, [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] {
    let limit = try inputs.optional(0)?.integers().first ?? .max
    var condition = try inputs.optional(1).map { $0.integers().first != 0 } ?? true
    let stackedCount = bodies[0].outputs.count - 1 - carriedCount
    guard inputs.count >= 2 + carriedCount, stackedCount >= 0 else {
      throw ApusError(.typeMismatch, "\(inputs.count) operands for \(carriedCount) carried values")
    }
    var carried = Array(inputs[2..<(2 + carriedCount)])
    let captured = Array(inputs[(2 + carriedCount)...])
    var stacks = [[Tensor]](repeating: [], count: stackedCount)
    var iteration: Int64 = 0
    while condition && iteration < limit {
      let operands: [RuntimeValue?] =
        [
          .tensor(try Tensor([iteration], .int64, shape: [])),
          .tensor(try Tensor([Int64(1)], .bool, shape: [])),
        ] + carried + captured
      let results = try run(0, operands)
      guard results.count == 1 + carriedCount + stackedCount else {
        throw ApusError(.internalError, "the body returned \(results.count) values")
      }
      condition = results[0].tensor.map { $0.integers().first != 0 } ?? true
      carried = Array(results[1..<(1 + carriedCount)])
      for index in 0..<stackedCount {
        guard let tensor = results[1 + carriedCount + index].tensor else {
          throw ApusError(.typeMismatch, "a stacked result is not a tensor")
        }
        stacks[index].append(tensor)
      }
      iteration += 1
    }
    var results: [RuntimeValue] = []
    for value in carried {
      guard let value else { throw ApusError(.typeMismatch, "a carried value is missing") }
      results.append(value)
    }
    for index in 0..<stackedCount {
      let output = bodies[0].outputs[1 + carriedCount + index]
      results.append(
        .tensor(try TensorStack.stack(stacks[index], axis: 0, emptyType: bodies[0][output].type)))
    }
    return results
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try execute(inputs) { (body, operands) throws(ApusError) in
      try ReferenceInterpreter.run(bodies[body], inputs: operands)
    }
  }
}

/// Joins tensors along a new axis.
enum TensorStack {
  /// The stack; for no tensors, an empty one of the given type.
  static func stack(_ tensors: [Tensor], axis: Int, emptyType: ValueType) throws(ApusError) -> Tensor
  {
    guard let first = tensors.first else {
      guard case .tensor(let type) = emptyType else {
        throw ApusError(.typeMismatch, "a stacked result is not a tensor")
      }
      var shape = (type.dims ?? []).map { $0.value ?? 0 }
      shape.insert(0, at: min(axis, shape.count))
      return try Tensor(type.dataType, shape: shape)
    }
    var operands: [RuntimeValue?] = []
    for tensor in tensors {
      guard tensor.shape == first.shape, tensor.dataType == first.dataType else {
        throw ApusError(
          .typeMismatch, "stacked results differ: \(first.type) and \(tensor.type)")
      }
      var shape = tensor.shape
      shape.insert(1, at: try Axis.resolved(axis, rank: shape.count + 1))
      operands.append(.tensor(try tensor.reshaped(shape)))
    }
    guard case .tensor(let result)? = try Concat(axis: axis).evaluate(operands).first else {
      throw ApusError(.internalError, "nothing was stacked")
    }
    return result
  }
}
