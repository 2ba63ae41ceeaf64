// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Weights of products and tables of rows are stored in half precision; kernels widen them on the way
/// into registers and compute in single precision.
///
/// Weights beyond the largest number of half precision keep single precision; the refusal says how many.
public struct StoreWeightsInHalf: Pass {
  public let name = "StoreWeightsInHalf"
  /// The layers to change.
  public let layers: LayerChoice
  /// The largest number of half precision.
  public static let largest: Float = 65504

  /// Creates the pass.
  public init(choosing layers: LayerChoice = .all) { self.layers = layers }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    var halves: [ValueID: ValueID] = [:]
    for id in try graph.topologicalOrder() where layers.contains(graph[id]) {
      guard let (index, op) = Self.half(graph[id], graph), let weights = graph[id].inputs[index],
        let constant = graph[weights].constant
      else { continue }
      let beyond = Self.countBeyond(constant)
      guard beyond == 0 else {
        context.refuse(
          name, graph[id].name,
          because: "\(beyond) of \(constant.count) weights are beyond \(Self.largest)")
        continue
      }
      guard context.claim(name, graph[id].name) else { continue }
      let stored: ValueID
      if let known = halves[weights] {
        stored = known
      } else {
        stored = graph.addConstant(
          graph.uniqueName("\(graph[weights].name).half"), try constant.converted(to: .float16))
        halves[weights] = stored
      }
      try change(id, op, index, stored, &graph)
      count += 1
    }
    return count
  }

  private func change(
    _ id: NodeID, _ op: any Operator, _ index: Int, _ stored: ValueID, _ graph: inout Graph
  ) throws(ApusError) {
    var inputs = graph[id].inputs
    inputs[index] = stored
    guard op is Gather else { return graph.update(id, op: op, inputs: inputs) }
    var patch = GraphPatch(rule: name, replacing: [id])
    let rows = patch.add(op, inputs.map { $0.map { .existing($0) } })
    patch.replace(graph[id].outputs[0], with: patch.add(Cast(to: .float32), [rows]))
    try patch.apply(to: &graph)
  }

  /// Whether a node has weights that may be stored in half precision.
  public static func takes(_ node: Node, _ graph: Graph) -> Bool { half(node, graph) != nil }

  /// The operand with the weights and the operator for them.
  private static func half(_ node: Node, _ graph: Graph) -> (Int, any Operator)? {
    func isWide(_ index: Int) -> Tensor? {
      guard index < node.inputs.count,
        let constant = node.inputs[index].flatMap({ graph[$0].constant }),
        constant.dataType == .float32, constant.rank >= 2, constant.count > 0
      else { return nil }
      return constant
    }
    if var conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast, let w = isWide(1),
      w.rank <= 4, graph[node.inputs[0]!].type.tensor?.dataType == .float32
    {
      // Depthwise weights are few.
      guard conv.group == 1 || w.shape[1] > 1 else { return nil }
      conv.sumType = .float32
      return (1, conv)
    }
    if let product = node.op as? MatMul, product.sumType == nil, let w = isWide(1), w.rank == 2,
      graph[node.inputs[0]!].type.tensor?.dataType == .float32
    {
      return (1, MatMul(sumType: .float32))
    }
    if let gather = node.op as? Gather, isWide(0) != nil { return (0, gather) }
    return nil
  }

  private static func countBeyond(_ tensor: Tensor) -> Int {
    tensor.withElements(of: Float.self) { values in
      values.reduce(0) { $0 + (abs($1) <= largest ? 0 : 1) }
    }
  }
}
