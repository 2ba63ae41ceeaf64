// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Moves transposes from operands to results (`f(T(x)) -> T(f'(x))`) and joins those that meet
/// (`T2(T1(x)) -> T3(x)`), so that they cancel between operators that agree on a layout.
public struct PropagateTransposes: Pass {
  public let name = "PropagateTransposes"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      var done = try joinTransposes(id, &graph, context)
      if !done { done = try moveThrough(id, &graph, context) }
      if done { count += 1 }
    }
    return count
  }

  private func joinTransposes(_ id: NodeID, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError) -> Bool
  {
    let node = graph[id]
    guard let outer = node.op as? Transpose, let x = node.inputs[0],
      let rank = graph[x].type.tensor?.rank
    else { return false }
    let second = outer.permutation ?? Array((0..<rank).reversed())
    if second == Array(0..<rank) {
      guard !graph.isOutput(node.outputs[0]) || graph[x].producer != nil,
        context.claim(name, node.name)
      else { return false }
      graph.replaceUses(of: node.outputs[0], with: x)
      graph.remove(id)
      return true
    }
    guard let producer = graph[x].producer, let inner = graph[producer].op as? Transpose,
      let source = graph[producer].inputs[0], context.claim(name, node.name)
    else { return false }
    let first = inner.permutation ?? Array((0..<rank).reversed())
    guard first.count == rank, second.count == rank else { return false }
    let joined = second.map { first[$0] }
    if joined == Array(0..<rank) {
      graph.replaceUses(of: node.outputs[0], with: source)
      graph.remove(id)
    } else {
      graph.update(id, op: Transpose(permutation: joined), inputs: [source])
    }
    if graph.useCount(x) == 0 { graph.remove(producer) }
    return true
  }

  /// The permutation and source of an operand that is a transposed value.
  private func transposed(_ value: ValueID, _ graph: Graph) -> (permutation: [Int], source: ValueID)? {
    guard let producer = graph[value].producer, let op = graph[producer].op as? Transpose,
      let source = graph[producer].inputs[0], let permutation = op.permutation
    else { return nil }
    return (permutation, source)
  }

  private func moveThrough(_ id: NodeID, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError) -> Bool
  {
    let node = graph[id]
    guard !(node.op is Transpose), let op = node.op as? any PermutableOperator,
      let permutation = commonPermutation(node, graph)
    else { return false }
    let inverse = Self.inverse(permutation)
    let expanded = try fullRankConstants(node, graph, rank: permutation.count)
    var facts = graph.inferenceInputs(
      node.inputs, outputCount: node.outputs.count, scope: node.name)
    for (index, tensor) in expanded {
      facts.types[index] = .tensor(tensor.type)
      facts.constants[index] = tensor
    }
    // Operands are T(x') with T = permutation; the operator must work on x' = T^-1(operand).
    guard let form = op.permuted(by: inverse, inputs: facts),
      form.permutesInput.count == node.inputs.count, context.claim(name, node.name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    var inputs: [GraphPatch.Reference?] = []
    for (index, input) in node.inputs.enumerated() {
      guard let input else {
        inputs.append(nil)
        continue
      }
      if let tensor = expanded[index], form.permutesInput[index] {
        let constant = patch.constant("\(graph[input].name).expanded", tensor)
        inputs.append(patch.add(Transpose(permutation: inverse), [constant]))
      } else if let constant = form.replacedInputs[index] {
        inputs.append(patch.constant("\(graph[input].name).permuted", constant))
      } else if !form.permutesInput[index] {
        inputs.append(.existing(input))
      } else if let known = transposed(input, graph), known.permutation == permutation {
        inputs.append(.existing(known.source))
      } else {
        inputs.append(patch.add(Transpose(permutation: inverse), [.existing(input)]))
      }
    }
    let results = patch.add(form.op, inputs, outputCount: node.outputs.count)
    for (old, new) in zip(node.outputs, results) {
      patch.replace(old, with: patch.add(Transpose(permutation: permutation), [new]))
    }
    try patch.apply(to: &graph)
    return true
  }

  /// Constants of pointwise operators that broadcast from fewer axes, with leading axes of one added,
  /// so that they can be permuted like the other operands.
  private func fullRankConstants(_ node: Node, _ graph: Graph, rank: Int) throws(ApusError)
    -> [Int: Tensor]
  {
    guard node.op is any PointwiseOperator else { return [:] }
    var result: [Int: Tensor] = [:]
    for (index, input) in node.inputs.enumerated() {
      guard let input, let tensor = graph[input].constant, graph[input].packing == nil,
        tensor.rank < rank, tensor.count > 1
      else { continue }
      result[index] = try tensor.reshaped(
        Array(repeating: 1, count: rank - tensor.rank) + tensor.shape)
    }
    return result
  }

  /// The permutation that moving would cancel: that of the transposed operands, provided that they
  /// are at least as many as the other variable operands of the same rank.
  private func commonPermutation(_ node: Node, _ graph: Graph) -> [Int]? {
    var counts: [[Int]: Int] = [:]
    var others = 0
    for input in node.inputs.compactMap({ $0 }) where graph[input].constant == nil {
      if let known = transposed(input, graph) {
        counts[known.permutation, default: 0] += 1
      } else if (graph[input].type.tensor?.rank ?? 0) >= 3 {
        others += 1
      }
    }
    guard let best = counts.max(by: { ($0.value, $1.key.description) < ($1.value, $0.key.description) })
    else { return nil }
    let conflicting = counts.values.reduce(0, +) - best.value + others
    return best.value >= conflicting ? best.key : nil
  }

  private static func inverse(_ permutation: [Int]) -> [Int] {
    var result = permutation
    for (index, axis) in permutation.enumerated() { result[axis] = index }
    return result
  }
}
