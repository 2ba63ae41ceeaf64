// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Weights of matrix products are stored as numbers of four bits, with a scale for each block of rows in
/// a column; kernels look their values up in registers and compute in single precision.
///
/// Weights that are not finite keep single precision; the refusal says how many.
public struct StoreWeightsInFourBits: Pass {
  public let name = "StoreWeightsInFourBits"
  /// The layers to change.
  public let layers: LayerChoice
  /// Rows that share a scale.
  public let block: Int

  /// Creates the pass.
  public init(choosing layers: LayerChoice = .all, block: Int = 32) {
    self.layers = layers
    self.block = block
  }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    var stored: [ValueID: [ValueID]] = [:]
    for id in try graph.topologicalOrder() where layers.contains(graph[id]) {
      guard Self.takes(graph[id], block: block, graph), let weights = graph[id].inputs[1],
        let constant = graph[weights].constant
      else { continue }
      let beyond = Self.countBeyond(constant)
      guard beyond == 0 else {
        context.refuse(
          name, graph[id].name, because: "\(beyond) of \(constant.count) weights are not finite")
        continue
      }
      guard context.claim(name, graph[id].name) else { continue }
      let operands: [ValueID]
      if let known = stored[weights] {
        operands = known
      } else {
        operands = try Self.round(constant, graph[weights].name, block: block, &graph)
        stored[weights] = operands
      }
      graph.update(id, op: BlockQuantizedMatMul(block: block), inputs: [graph[id].inputs[0]] + operands)
      count += 1
    }
    return count
  }

  private static func round(_ weights: Tensor, _ name: String, block: Int, _ graph: inout Graph)
    throws(ApusError) -> [ValueID]
  {
    let rounded = try BlockRounding(weights, block: block)
    var operands = [
      graph.addConstant(graph.uniqueName("\(name).numbers"), rounded.numbers),
      graph.addConstant(graph.uniqueName("\(name).scales"), rounded.scales),
    ]
    if let zeros = rounded.zeros {
      operands.append(graph.addConstant(graph.uniqueName("\(name).zeros"), zeros))
    }
    return operands
  }

  /// Whether a node's weights may be stored so: a constant matrix with at least a block of rows.
  public static func takes(_ node: Node, block: Int, _ graph: Graph) -> Bool {
    guard let product = node.op as? MatMul, product.sumType == nil, product.isPlain,
      node.inputs.count == 2, let a = node.inputs[0], let b = node.inputs[1],
      graph[a].type.tensor?.dataType == .float32, let weights = graph[b].constant,
      weights.dataType == .float32, weights.rank == 2
    else { return false }
    return weights.shape[0] >= block && weights.shape[1] > 0
  }

  private static func countBeyond(_ tensor: Tensor) -> Int {
    tensor.withElements(of: Float.self) { values in
      values.reduce(0) { $0 + (abs($1) <= BlockRounding.largest ? 0 : 1) }
    }
  }
}
