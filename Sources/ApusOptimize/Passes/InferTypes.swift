// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Infers every value's type anew, operands before results, so that what earlier passes learnt
/// (constants, known sizes) reaches everything downstream.
public struct InferTypes: Pass {
  public let name = "InferTypes"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var changes = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      let facts = graph.inferenceInputs(
        node.inputs, outputCount: node.outputs.count, scope: node.name)
      let types: [ValueType]
      do {
        types = try node.op.infer(facts)
      } catch where graph.isBody && error.code == .typeMismatch {
        // A branch may contradict the types outside that would keep it from being taken; should it
        // run all the same, the operator itself reports the contradiction.
        continue
      } catch {
        throw error.at(node.location).at(
          GraphLocation(node: node.name, operatorName: node.op.name))
      }
      for (output, type) in zip(node.outputs, types) {
        let merged = Self.merge(graph[output].type, type)
        if graph[output].type != merged {
          graph[output].type = merged
          changes += 1
        }
      }
      graph.updateSymbolic(id, facts)
    }
    return changes
  }

  /// The inferred type, keeping declared sizes that inference could not find itself.
  static func merge(_ declared: ValueType, _ inferred: ValueType) -> ValueType {
    guard case .tensor(let old) = declared, case .tensor(let new) = inferred else {
      return inferred
    }
    guard let fresh = new.dims else {
      return old.dataType == new.dataType ? declared : inferred
    }
    guard let known = old.dims, known.count == fresh.count, old.dataType == new.dataType else {
      return inferred
    }
    let dims = zip(known, fresh).map { $1.value == nil && $0.value != nil ? $0 : $1 }
    return .tensor(TensorType(new.dataType, dims))
  }
}
