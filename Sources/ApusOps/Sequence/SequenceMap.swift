// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A graph run on every item of a sequence (ONNX `SequenceMap`): the first operand and others that are
/// sequences give one item a run, tensors are the same in all runs; results are sequences.
///
/// Operands: the node's own, then `capturedCount` values that the body takes from around it; the body's
/// inputs are in the same order.
public struct SequenceMap: ControlFlowOperator {
  public static let name = "SequenceMap"
  public var body: Graph
  public var capturedCount: Int

  /// Creates the operator.
  public init(body: Graph, capturedCount: Int = 0) {
    self.body = body
    self.capturedCount = capturedCount
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    body = try attributes.graph("body")
    capturedCount = try attributes.int("captured_count", 0)
  }

  public var attributes: Attributes {
    ["body": .graph(body), "captured_count": .int(capturedCount)]
  }

  public var bodies: [Graph] {
    get { [body] }
    set { if let first = newValue.first { body = first } }
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    _ = try inputs.sequenceElement(0)
    return body.outputs.map { output in
      guard case .tensor(let type) = body[output].type else { return .sequence(body[output].type) }
      // Items need not have the same sizes.
      return .sequence(typed(type.dataType, nil))
    }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try execute(inputs) { (_, values) throws(ApusError) in
      try ReferenceInterpreter.run(body, inputs: values)
    }
  }

  public func execute(
    _ inputs: [RuntimeValue?],
    run: (Int, [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] {
    let count = try inputs.sequence(0).items.count
    let own = max(0, inputs.count - max(0, capturedCount))
    var results = [[RuntimeValue]](repeating: [], count: body.outputs.count)
    for index in 0..<count {
      var operands: [RuntimeValue?] = []
      for (position, input) in inputs.enumerated() {
        if position < own, case .sequence(let items, _)? = input {
          guard index < items.count else {
            throw ApusError(.execution, "sequence \(position) has \(items.count) of \(count) items")
          }
          operands.append(items[index])
        } else {
          operands.append(input)
        }
      }
      for (position, value) in try run(0, operands).enumerated() where position < results.count {
        results[position].append(value)
      }
    }
    let types = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    return zip(results, types).map { items, type in
      guard case .sequence(let element) = type else { return .sequence(items, of: type) }
      return .sequence(items, of: element)
    }
  }
}
