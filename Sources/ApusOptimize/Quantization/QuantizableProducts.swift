// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// The products of a network of floats that can be computed on bytes, and the tensors to calibrate for
/// them: only those that stay quantised between kernels.
public struct QuantizableProducts {
  /// A product with constant weights.
  public struct Product: Sendable {
    public let node: NodeID
    /// Its left side.
    public let input: ValueID
    /// The tensor whose range its left side has: what was only moved, or the largest taken of, since
    /// then shares the range, so that one rounding serves all its readers.
    public let root: ValueID
  }

  /// The products in order.
  public let products: [Product]

  /// Finds them in a simplified network.
  public init(_ graph: Graph) throws(ApusError) {
    var products: [Product] = []
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard node.inputs.count >= 2, let x = node.inputs[0], graph[x].constant == nil,
        graph[x].type.tensor?.dataType == .float32,
        let weights = node.inputs[1].flatMap({ graph[$0].constant }), weights.dataType == .float32,
        weights.count > 0, node.op is Conv || weights.rank == 2,
        IntegerProduct.form(of: node, graph) != nil
      else { continue }
      products.append(Product(node: id, input: x, root: Self.root(x, graph)))
    }
    self.products = products
  }

  private static func root(_ value: ValueID, _ graph: Graph) -> ValueID {
    var result = value
    while let producer = graph[result].producer, graph[producer].passedOn == [0],
      graph[producer].outputs.count == 1, let source = graph[producer].inputs[0],
      graph[source].type.tensor?.dataType == .float32, graph[source].constant == nil
    {
      result = source
    }
    return result
  }
}
