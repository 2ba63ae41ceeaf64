// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `DequantizeLinear(QuantizeLinear(x))` with equal constant parameters becomes the same rounding in
/// floating point: `(clamp(round(x / s), low - z, high - z)) * s`.
///
/// The values are exactly those of the integer form, and the expression fuses into the kernel before
/// it. Kernels that compute in integers take the pairs before this pass sees them.
public struct SimplifyQuantizePairs: Pass {
  public let name = "SimplifyQuantizePairs"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      let node = graph[id]
      guard node.op is DequantizeLinear, let quantized = node.inputs[0],
        let producer = graph[quantized].producer, graph[producer].op is QuantizeLinear,
        let x = graph[producer].inputs[0], graph[x].type.tensor?.dataType == .float32,
        graph[node.outputs[0]].type.tensor?.dataType == .float32,
        let type = graph[quantized].type.tensor?.dataType, type.isInteger, type.bitWidth <= 16
      else { continue }
      guard let parameters = parameters(graph[producer], graph),
        let other = self.parameters(node, graph), parameters == other
      else {
        context.refuse(name, node.name, because: "the pair's scales are not equal constants")
        continue
      }
      guard context.claim(name, node.name) else { continue }
      let range = type.integerRange
      let expression: ScalarExpr =
        .max(
          .const(Double(range.lowerBound) - parameters.zeroPoint),
          .min(
            .const(Double(range.upperBound) - parameters.zeroPoint),
            .unary(.round, .input(0) / .const(parameters.scale)))) * .const(parameters.scale)
      var patch = GraphPatch(rule: name, replacing: [producer, id])
      patch.replace(
        node.outputs[0],
        with: patch.add(
          Pointwise(expression: expression, resultType: .float32), [.existing(x)]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }

  private struct Parameters: Equatable {
    var scale: Double
    var zeroPoint: Double
  }

  private func parameters(_ node: Node, _ graph: Graph) -> Parameters? {
    guard node.inputs.count >= 2, let scaleID = node.inputs[1],
      let scale = graph[scaleID].constant, scale.count == 1
    else { return nil }
    var zeroPoint = 0.0
    if node.inputs.count > 2, let zeroID = node.inputs[2] {
      guard let zero = graph[zeroID].constant, zero.count == 1 else { return nil }
      zeroPoint = zero.doubles()[0]
    }
    return Parameters(scale: scale.doubles()[0], zeroPoint: zeroPoint)
  }
}
