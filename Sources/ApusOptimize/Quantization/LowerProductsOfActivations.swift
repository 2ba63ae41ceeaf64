// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// A product of two computed, dequantised matrices of bytes (attention) is summed in integers:
///
///     ((a - p) * s) @ ((b - q) * t) = ((a - p) @ (b - q)) * (s * t)
///
/// The kernels take the zero points out of the sums, which are exact.
public struct LowerProductsOfActivations: Pass {
  public let name = "LowerProductsOfActivations"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try lower(id, &graph, context) { count += 1 }
    }
    return count
  }

  private func lower(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    guard let product = node.op as? MatMul, product.sumType == nil, product.isPlain,
      let a = bytes(node.inputs[0], graph), a.parameters.type == .uint8,
      let b = bytes(node.inputs[1], graph), fits(a.value, b.value, graph),
      graph[node.outputs[0]].type.tensor?.dataType == .float32,
      context.claim(name, node.name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    let sum = patch.add(
      MatMul(
        sumType: .int32, leftZero: a.parameters.zeroPoint, rightZero: b.parameters.zeroPoint),
      [.existing(a.value), .existing(b.value)])
    let factor = Double(Float(a.parameters.scale * b.parameters.scale))
    let scaled = Pointwise(
      expression: .cast(.input(0), .float32) * .const(factor), resultType: .float32)
    patch.replace(node.outputs[0], with: patch.add(scaled, [sum]))
    try patch.apply(to: &graph)
    return true
  }

  /// The computed bytes behind a `DequantizeLinear` with one scale.
  private func bytes(_ value: ValueID?, _ graph: Graph) -> (
    value: ValueID, parameters: QuantizationParameters
  )? {
    guard let value, let producer = graph[value].producer,
      graph[producer].op is DequantizeLinear,
      let parameters = QuantizationParameters(graph[producer], graph),
      parameters.type == .uint8 || parameters.type == .int8,
      let source = graph[producer].inputs[0], graph[source].constant == nil
    else { return nil }
    return (source, parameters)
  }

  /// Batches of matrices whose sums cannot leave 32 bits.
  private func fits(_ a: ValueID, _ b: ValueID, _ graph: Graph) -> Bool {
    guard let left = graph[a].type.tensor?.dims, let right = graph[b].type.tensor?.dims,
      left.count >= 2, right.count >= 2
    else { return false }
    let depth = left.last?.value ?? right[right.count - 2].value ?? 0
    return depth * 255 * 255 <= Int(Int32.max)
  }
}
