// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// The rounding of activations that a network came with: `QuantizeLinear` nodes whose results only become floats
/// again, by the products that read them.
///
/// Weights that came rounded have no other form, and stay as they are.
struct ExplicitRounding {
  /// A layer and the nodes that round for it.
  struct Layer {
    let name: String
    let rounding: Set<NodeID>
  }

  /// The products that read rounded numbers, in order; then rounding that no product reads, by its own name.
  let layers: [Layer]
  private let graph: Graph
  /// All of it, in order.
  private let rounding: [NodeID]

  /// Looks at a network as it was imported.
  init(_ graph: Graph) throws(ApusError) {
    self.graph = graph
    let order = try graph.topologicalOrder()
    rounding = order.filter { Self.rounds($0, graph) }
    let known = Set(rounding)
    var layers: [Layer] = []
    var read: Set<NodeID> = []
    for id in order where graph[id].op is any AnchorOperator {
      let own = graph[id].inputs.compactMap { $0 }.compactMap { Self.source(of: $0, graph) }
        .filter(known.contains)
      guard !own.isEmpty else { continue }
      layers.append(Layer(name: graph[id].name, rounding: Set(own)))
      read.formUnion(own)
    }
    layers += rounding.filter { !read.contains($0) }.map { Layer(name: graph[$0].name, rounding: [$0]) }
    self.layers = layers
  }

  /// Whether a node rounds floats that all of its readers turn into floats again.
  private static func rounds(_ id: NodeID, _ graph: Graph) -> Bool {
    let node = graph[id]
    guard node.op is QuantizeLinear, let x = node.inputs[0], graph[x].constant == nil,
      let type = graph[x].type.tensor?.dataType, type.isFloat, !graph.isOutput(node.outputs[0])
    else { return false }
    let readers = graph[node.outputs[0]].consumers
    return !readers.isEmpty
      && readers.allSatisfy { reader in
        graph[reader].op is DequantizeLinear && !graph.isOutput(graph[reader].outputs[0])
          && graph[graph[reader].outputs[0]].type.tensor?.dataType == type
      }
  }

  /// The `QuantizeLinear` behind a `DequantizeLinear` that a value came from.
  private static func source(of value: ValueID, _ graph: Graph) -> NodeID? {
    guard let back = graph[value].producer, graph[back].op is DequantizeLinear,
      let quantized = graph[back].inputs[0]
    else { return nil }
    return graph[quantized].producer
  }

  /// The network with no other rounding of activations than that of these layers.
  func network(rounding layers: [Layer]) -> Graph {
    let kept = layers.reduce(into: Set<NodeID>()) { $0.formUnion($1.rounding) }
    var result = graph
    for id in rounding where !kept.contains(id) {
      let node = result[id]
      guard let x = node.inputs[0] else { continue }
      for reader in Set(result[node.outputs[0]].consumers).sorted() {
        result.replaceUses(of: result[reader].outputs[0], with: x)
      }
    }
    return result
  }

  /// The tensors that are rounded, by name, each with the range of its integers where that is one range.
  var tensors: [(value: ValueID, name: String, range: ActivationRange?)] {
    rounding.compactMap { id in
      let node = graph[id]
      return node.inputs[0].map { ($0, graph[$0].name, range(of: node)) }
    }
  }

  private func range(of node: Node) -> ActivationRange? {
    func number(_ index: Int) -> Double? {
      guard index < node.inputs.count, let value = node.inputs[index] else { return index == 2 ? 0 : nil }
      return graph[value].constant.flatMap { $0.count == 1 ? $0.doubles()[0] : nil }
    }
    guard let scale = number(1), let zero = number(2), scale > 0, scale.isFinite,
      let type = graph[node.outputs[0]].type.tensor?.dataType, type.isInteger, type.bitWidth <= 16
    else { return nil }
    let steps = type.integerRange
    return ActivationRange(
      lower: (Double(steps.lowerBound) - zero) * scale, upper: (Double(steps.upperBound) - zero) * scale)
  }

  /// Makes the rounded tensors results of the network without rounding, and gives their names there.
  func watched() -> (network: Graph, names: [String]) {
    var network = network(rounding: [])
    let names = tensors.enumerated().map { index, tensor in
      let name = "rounded:\(index)"
      network.addOutput(tensor.value, name: name)
      return name
    }
    return (network, names)
  }
}
