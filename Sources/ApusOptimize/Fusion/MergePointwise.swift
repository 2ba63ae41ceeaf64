// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Joins pointwise nodes into one region: a producer whose only reader is another pointwise node of
/// the same shape is computed inside that reader, and its result never reaches memory.
public struct MergePointwise: Pass {
  public let name = "MergePointwise"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      guard let reader = PointwiseTerm(graph[id], graph), isJoinable(graph[id].outputs[0], graph)
      else { continue }
      var term = reader
      var absorbed: [NodeID] = []
      while let (producer, value, inner) = mergeable(into: term, id, graph) {
        let joined = term.substituting(value, by: inner)
        guard joined.expression.nodeCount <= PointwiseTerm.nodeLimit,
          joined.operands.count <= PointwiseTerm.operandLimit,
          context.claim(name, graph[producer].name)
        else { break }
        term = joined
        absorbed.append(producer)
        // The absorbed node stays until the patch; stop asking for it.
        if absorbed.count > PointwiseTerm.nodeLimit { break }
      }
      // A constant operand in the expression is worth it alone: powers of two are products.
      let hasConstants = absorbed.isEmpty && term.operands.count < graph[id].inputs.count
      guard !absorbed.isEmpty || hasConstants && !term.operands.isEmpty,
        term.operands.allSatisfy({ isJoinable($0, graph, sums: true) }),
        hasShape(of: graph[id].outputs[0], term, graph),
        !hasConstants || context.claim(name, graph[id].name)
      else { continue }
      try replace([id] + absorbed, by: term, &graph)
      count += max(1, absorbed.count)
    }
    return count
  }

  private func isJoinable(_ value: ValueID, _ graph: Graph, sums: Bool = false) -> Bool {
    guard let type = graph[value].type.tensor?.dataType else { return false }
    return PointwiseTerm.isJoinable(type) || sums && type == .int32
  }

  /// Whether the operands broadcast to the result without the constants, which may have axes too.
  private func hasShape(of result: ValueID, _ term: PointwiseTerm, _ graph: Graph) -> Bool {
    let dims = term.operands.compactMap { graph[$0].type.tensor?.dims }
    guard dims.count == term.operands.count, let all = try? Broadcasting.dims(dims) else {
      return false
    }
    return all == graph[result].type.tensor?.dims
  }

  private func mergeable(into term: PointwiseTerm, _ reader: NodeID, _ graph: Graph) -> (
    producer: NodeID, value: ValueID, inner: PointwiseTerm
  )? {
    let dims = graph[graph[reader].outputs[0]].type.tensor?.dims
    guard dims != nil else { return nil }
    for value in term.operands {
      guard let producer = graph[value].producer, graph[value].type.tensor?.dims == dims,
        !graph.isOutput(value), isJoinable(value, graph), let inner = PointwiseTerm(graph[producer], graph),
        // Every reader of the value must already be inside the region.
        isPrivate(value, to: reader, graph), !belongsToProduct(inner, value, graph)
      else { continue }
      return (producer, value, inner)
    }
    return nil
  }

  /// Whether the value is the rounded form of a product's sums: written by the product's own kernel it
  /// is a quarter of the sums in size.
  private func belongsToProduct(_ inner: PointwiseTerm, _ value: ValueID, _ graph: Graph) -> Bool {
    guard let type = graph[value].type.tensor?.dataType, type.bitWidth < 32 else { return false }
    return inner.operands.contains { operand in
      graph[operand].producer.map { graph[$0].op is any AnchorOperator } ?? false
    }
  }

  private func isPrivate(_ value: ValueID, to reader: NodeID, _ graph: Graph) -> Bool {
    var frontier = [value]
    var steps = 0
    while let next = frontier.popLast() {
      if graph.isOutput(next) { return false }
      for consumer in Set(graph[next].consumers) where consumer != reader {
        // A reader in between counts when it is a pointwise node that ends in the region itself.
        steps += 1
        guard steps < 64, graph[consumer].op is any PointwiseOperator,
          graph[consumer].outputs.count == 1
        else { return false }
        frontier.append(graph[consumer].outputs[0])
      }
    }
    return true
  }

  private func replace(_ nodes: [NodeID], by term: PointwiseTerm, _ graph: inout Graph)
    throws(ApusError)
  {
    let order = nodes.reversed()
    var patch = GraphPatch(rule: name, replacing: Array(order))
    let result = patch.add(
      Pointwise(
        expression: term.expression,
        resultType: graph[graph[nodes[0]].outputs[0]].type.tensor?.dataType ?? .float32),
      term.operands.map { .existing($0) })
    patch.replace(graph[nodes[0]].outputs[0], with: result)
    try patch.apply(to: &graph)
  }
}
