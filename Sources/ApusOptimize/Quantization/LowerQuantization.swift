// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Quantising and dequantising a tensor of bytes with one scale is elementwise arithmetic: as an
/// expression it joins the kernels around it.
public struct LowerQuantization: Pass {
  public let name = "LowerQuantization"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      let node = graph[id]
      guard let parameters = QuantizationParameters(node, graph), parameters.type.bitWidth == 8,
        let x = node.inputs[0], graph[x].constant == nil,
        let source = graph[x].type.tensor?.dataType,
        let target = graph[node.outputs[0]].type.tensor?.dataType
      else { continue }
      let isQuantize = node.op is QuantizeLinear
      guard source == .float32 || target == .float32, context.claim(name, node.name) else { continue }
      let expression = isQuantize ? parameters.quantization : parameters.dequantization
      var patch = GraphPatch(rule: name, replacing: [id])
      patch.replace(
        node.outputs[0],
        with: patch.add(
          Pointwise(expression: expression, resultType: target), [.existing(x)]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
