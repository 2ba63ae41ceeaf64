// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Signed bytes between a `QuantizeLinear` and its `DequantizeLinear`s become unsigned ones with a zero
/// point 128 higher: the same numbers, in the form that the multiply instructions take on their left.
public struct UseUnsignedActivations: Pass {
  public let name = "UseUnsignedActivations"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      let node = graph[id]
      guard node.op is QuantizeLinear, let parameters = QuantizationParameters(node, graph),
        parameters.type == .int8, let x = node.inputs[0], let scale = node.inputs[1],
        !graph.isOutput(node.outputs[0])
      else { continue }
      let readers = Array(Set(graph[node.outputs[0]].consumers)).sorted()
      let areAlike = readers.allSatisfy { reader in
        graph[reader].op is DequantizeLinear
          && QuantizationParameters(graph[reader], graph) == parameters
      }
      guard areAlike, context.claim(name, node.name) else { continue }
      var patch = GraphPatch(rule: name, replacing: [id] + readers)
      let zero = patch.constant(
        "\(node.name).zero_point", try Tensor([Int64(parameters.zeroPoint + 128)], .uint8, shape: []))
      var op = QuantizeLinear()
      op.outputType = .uint8
      let quantized = patch.add(op, [.existing(x), .existing(scale), zero])
      for reader in readers {
        let result = patch.add(DequantizeLinear(), [quantized, .existing(scale), zero])
        patch.replace(graph[reader].outputs[0], with: result)
      }
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
