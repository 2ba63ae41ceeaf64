// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
import ApusTensor

/// Networks whose batch may be run member by member: what lies between the layers of one member stays in
/// cache where that of a whole batch would not, and threads take members instead of parts of layers.
package enum BatchSplit {
  /// Whether every input and result has one size, a symbol, along its first axis, and nothing in between
  /// mixes what lies at different places of it.
  package static func isPossible(_ graph: Graph) -> Bool {
    guard let first = graph.inputs.first, let batch = leading(first, graph), batch.value == nil,
      graph.inputs.allSatisfy({ leading($0, graph) == batch }),
      graph.outputs.allSatisfy({ leading($0, graph) == batch && graph[$0].constant == nil }),
      let order = try? graph.topologicalOrder()
    else { return false }
    var batched = Set(graph.inputs)
    var sizes = Set<ValueID>()
    for id in order {
      let node = graph[id]
      if computesSizes(node, batched, sizes, graph) {
        sizes.formUnion(node.outputs)
        continue
      }
      if node.inputs.contains(where: { $0.map(sizes.contains) ?? false }) {
        guard takesShape(node, batched, sizes, graph), leading(node.outputs[0], graph) == batch else {
          return false
        }
        batched.insert(node.outputs[0])
        continue
      }
      let operands = node.inputs.map { value -> BatchOperand? in
        guard let value, let rank = graph[value].type.tensor?.dims?.count else { return nil }
        return BatchOperand(rank: rank, isBatched: batched.contains(value))
      }
      // Computed from constants alone, or from sizes: those would differ.
      guard operands.contains(where: { $0?.isBatched ?? false }) else {
        guard node.inputs.allSatisfy({ $0.map { graph[$0].constant != nil } ?? true }),
          !node.inputs.isEmpty
        else { return false }
        continue
      }
      guard let op = node.op as? any BatchwiseOperator, node.outputs.count == 1,
        leading(node.outputs[0], graph) == batch,
        let rank = graph[node.outputs[0]].type.tensor?.dims?.count,
        node.inputs.allSatisfy({ $0.map { isFixed($0, graph) || batched.contains($0) } ?? true }),
        op.isBatchwise(operands, resultRank: rank)
      else { return false }
      batched.insert(node.outputs[0])
    }
    return graph.outputs.allSatisfy(batched.contains)
  }

  /// Whether a node computes with the sizes of tensors only: those of one member are then right for it.
  private static func computesSizes(
    _ node: Node, _ batched: Set<ValueID>, _ sizes: Set<ValueID>, _ graph: Graph
  ) -> Bool {
    if node.op is Shape { return node.inputs.first.map { $0.map(batched.contains) ?? false } ?? false }
    let operands = node.inputs.compactMap { $0 }
    return node.op is any ShapeValueOperator && operands.contains(where: sizes.contains)
      && operands.allSatisfy { sizes.contains($0) || graph[$0].constant != nil }
  }

  /// Whether a node takes sizes only as the shape of its result, and otherwise a batch, whose members keep
  /// their order, or what is repeated for every member.
  private static func takesShape(
    _ node: Node, _ batched: Set<ValueID>, _ sizes: Set<ValueID>, _ graph: Graph
  ) -> Bool {
    guard node.inputs.count == 2, node.outputs.count == 1, let x = node.inputs[0],
      let shape = node.inputs[1], sizes.contains(shape), let from = graph[x].type.tensor?.dims
    else { return false }
    if node.op is Reshape { return batched.contains(x) }
    let rank = graph[node.outputs[0]].type.tensor?.rank ?? 0
    return node.op is Expand && isFixed(x, graph) && (from.count < rank || from.first?.value == 1)
  }

  /// The size that all inputs have along their first axis, if it is more than one.
  static func batch(of types: [ValueType?]) -> Int? {
    let sizes = types.map { $0?.tensor?.shape?.first }
    guard let size = sizes.first ?? nil, size > 1, sizes.allSatisfy({ $0 == size }) else { return nil }
    return size
  }

  /// The type with another size along the first axis.
  static func resized(_ type: ValueType, to size: Int) -> ValueType {
    guard let tensor = type.tensor, let shape = tensor.shape, !shape.isEmpty else { return type }
    return .tensor(TensorType(tensor.dataType, shape: [size] + shape.dropFirst()))
  }

  private static func leading(_ value: ValueID, _ graph: Graph) -> Dim? {
    graph[value].type.tensor?.dims?.first
  }

  private static func isFixed(_ value: ValueID, _ graph: Graph) -> Bool {
    graph[value].constant != nil
  }
}
