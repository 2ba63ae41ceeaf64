// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Weights of four bits become floats where the device has no kernels for them.
public struct ExpandBlockWeights: Pass {
  public let name = "ExpandBlockWeights"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard let product = node.op as? BlockQuantizedMatMul, node.inputs.count >= 3 else { continue }
      let constants = node.inputs.dropFirst().map { $0.flatMap { graph[$0].constant } }
      guard let numbers = constants[0], let scales = constants[1],
        constants.count < 3 || node.inputs[3] == nil || constants[2] != nil,
        context.claim(name, node.name)
      else { continue }
      let weights = try product.weights(
        numbers, scales: scales, zeros: constants.count > 2 ? constants[2] : nil)
      let value = graph.addConstant(graph.uniqueName("\(node.name).weights"), weights)
      graph.update(id, op: MatMul(), inputs: [node.inputs[0], value])
      count += 1
    }
    return count
  }
}
