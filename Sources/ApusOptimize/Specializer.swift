// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Turns a graph with symbolic sizes into one for concrete input shapes: symbols are replaced, types
/// inferred again, shape arithmetic folded away.
public struct Specializer: Sendable {
  /// Creates a specialiser.
  public init() {}

  /// The graph for inputs of these types.
  ///
  /// - Parameters:
  ///   - types: The concrete type of each input, in order.
  ///   - values: Elements of inputs that decide shapes, by input number; these inputs stay in the
  ///     graph's signature but are used as constants.
  /// - Throws: `type-mismatch` when a node contradicts these sizes.
  public func specialize(_ graph: Graph, types: [ValueType], values: [Int: Tensor] = [:])
    throws(ApusError) -> Graph
  {
    guard types.count == graph.inputs.count else {
      throw ApusError(
        .typeMismatch,
        "the graph '\(graph.name)' takes \(graph.inputs.count) operands, \(types.count) are given")
    }
    var result = graph
    let sizes = bindings(graph, types)
    for id in result.values {
      guard case .tensor(let type) = result[id].type, let dims = type.dims else { continue }
      result[id].type = .tensor(
        TensorType(type.dataType, dims.map { $0.substituting(sizes) }))
      result[id].symbolic = result[id].symbolic.map { $0.map { $0.substituting(sizes) } }
    }
    for (index, input) in graph.inputs.enumerated() {
      result[input].type = types[index]
      if let value = values[index] {
        let constant = result.addConstant(result[input].name + ".value", value)
        result.replaceUses(of: input, with: constant)
      }
    }
    let context = PassContext()
    for _ in 0..<4 {
      _ = try InferTypes().run(on: &result, in: context)
      let folded = try FoldConstants().run(on: &result, in: context)
      let inlined = try InlineConstantConditions().run(on: &result, in: context)
      _ = try RemoveDeadNodes().run(on: &result, in: context)
      if folded == 0 && inlined == 0 { break }
    }
    return result
  }

  /// The sizes that the input types give to the symbols of the graph's inputs.
  public func bindings(_ graph: Graph, _ types: [ValueType]) -> [String: Dim] {
    var sizes: [String: Dim] = [:]
    for (input, type) in zip(graph.inputs, types) {
      guard let declared = graph[input].type.tensor?.dims, let given = type.tensor?.dims else {
        continue
      }
      for (dim, size) in zip(declared, given) {
        if let symbol = dim.symbolName, sizes[symbol] == nil { sizes[symbol] = size }
      }
    }
    return sizes
  }
}
