// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Vertical fusion in the other direction: an operator over rows (softmax, layer normalisation) computes
/// its first operand from the operands of the pointwise node that alone made it, as it reads them. What is
/// rounded to bytes before a softmax, scaled and masked, then never reaches memory as floats.
public struct FusePrologues: Pass {
  public let name = "FusePrologues"

  /// Creates the pass.
  public init() {}

  /// Every pass over a row computes the expression again.
  private static let nodeLimit = 24
  private static let operandLimit = 3

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try fuse(id, &graph, context) { count += 1 }
    }
    return count
  }

  private func fuse(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    let types = node.inputs.map { id in id.flatMap { graph[$0].type.tensor } }
    guard let anchor = node.op as? any RowOperator, anchor.isOverRows(types),
      node.outputs.count == 1, let value = node.inputs[0], !graph.isOutput(value),
      let producer = graph[value].producer, graph.useCount(value) == 1,
      var term = PointwiseTerm(graph[producer], graph), let dims = graph[value].type.tensor?.dims
    else { return false }
    // The first operand gives the shape.
    guard let main = term.operands.first(where: { graph[$0].type.tensor?.dims == dims }) else {
      return false
    }
    term.lead(with: main)
    if let reason = refusal(term, dims, graph) {
      context.refuse(name, node.name, because: reason)
      return false
    }
    guard context.claim(name, node.name) else { return false }
    let op = Prologued(
      anchor: anchor, prologue: term.expression, prologueInputCount: term.operands.count)
    var patch = GraphPatch(rule: name, replacing: [producer, id])
    let inputs = (term.operands + node.inputs.dropFirst()).map { id in
      id.map { GraphPatch.Reference.existing($0) }
    }
    patch.replace(node.outputs[0], with: patch.add(op, inputs))
    try patch.apply(to: &graph)
    return true
  }

  private func refusal(_ term: PointwiseTerm, _ dims: [Dim], _ graph: Graph) -> String? {
    guard term.expression.nodeCount <= Self.nodeLimit, term.operands.count <= Self.operandLimit else {
      return "too much would be computed again in every pass over a row"
    }
    var groups: Set<Int> = []
    for operand in term.operands {
      guard let type = graph[operand].type.tensor, let other = type.dims,
        PointwiseTerm.isJoinable(type.dataType)
      else { return "'\(graph[operand].name)' is of a type without kernels" }
      switch RowBroadcast(other, to: dims) {
      case .rows: break
      case .groups(let axes): groups.insert(axes)
      case .line, .element:
        guard type.dataType == .float32 else {
          return "'\(graph[operand].name)' is a line or an element, but no float32"
        }
      case nil:
        return "'\(graph[operand].name)' of shape \(type) changes between rows in another way"
      }
    }
    return groups.count > 1 ? "operands that repeat for different numbers of rows" : nil
  }
}

/// How an operand is broadcast to rows.
enum RowBroadcast: Equatable {
  /// It has a row for each.
  case rows
  /// It has a row for each place along so many leading axes.
  case groups(leadingAxes: Int)
  /// One row for all.
  case line
  /// One element for all.
  case element

  /// Reads dimensions; nil where none of these fits.
  init?(_ operand: [Dim], to result: [Dim]) {
    if operand == result {
      self = .rows
      return
    }
    if operand.allSatisfy({ $0 == 1 }) {
      self = .element
      return
    }
    guard operand.last == result.last else { return nil }
    if operand.dropLast().allSatisfy({ $0 == 1 }) {
      self = .line
      return
    }
    guard operand.count == result.count else { return nil }
    let shared = zip(operand, result).prefix { $0 == $1 }.count
    guard operand[shared...].dropLast().allSatisfy({ $0 == 1 }) else { return nil }
    self = .groups(leadingAxes: shared)
  }
}
