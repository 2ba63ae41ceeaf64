// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Convolutions and matrix products multiply numbers of type `bfloat16` and add the products in single
/// precision; what stands between them stays in single precision.
///
/// Products whose depth the instructions cannot pair (an image's three channels) keep single precision.
public struct UseBFloat16: Pass {
  public let name = "UseBFloat16"

  /// The products to round.
  public let layers: LayerChoice

  /// Creates the pass.
  public init(choosing layers: LayerChoice = .all) { self.layers = layers }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    var rounded: [ValueID: ValueID] = [:]
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try narrow(id, &graph, &rounded, context) { count += 1 }
    }
    return count
  }

  /// `rounded` has what each value was rounded to already: all its readers share one.
  private func narrow(
    _ id: NodeID, _ graph: inout Graph, _ rounded: inout [ValueID: ValueID], _ context: PassContext
  ) throws(ApusError) -> Bool {
    let node = graph[id]
    guard layers.contains(node), let op = Self.narrowForm(node, graph), let x = node.inputs[0],
      let right = node.inputs[1],
      let rank = graph[node.outputs[0]].type.tensor?.rank,
      context.claim(name, node.name)
    else { return false }
    let isComputed = graph[right].constant == nil
    var patch = GraphPatch(rule: name, replacing: [id])
    func cast(_ value: ValueID) -> GraphPatch.Reference {
      rounded[value].map { .existing($0) } ?? patch.add(Cast(to: .bfloat16), [.existing(value)])
    }
    let left = cast(x)
    let factor =
      try graph[right].constant.map { weights throws(ApusError) in
        patch.constant("\(node.name).weights", try weights.converted(to: .bfloat16))
      } ?? (right == x ? left : cast(right))
    let product = patch.add(op, [left, factor])
    var result = product
    if node.inputs.count > 2, let bias = node.inputs[2] {
      let axes = try Tensor([-1] + Array(repeating: 1, count: rank - 2), .int64, shape: [rank - 1])
      let vector = patch.add(Reshape(), [.existing(bias), patch.constant("\(node.name).axes", axes)])
      result = patch.add(Add(), [product, vector])
    }
    patch.replace(node.outputs[0], with: result)
    try patch.apply(to: &graph)
    for value in isComputed ? [x, right] : [x] where rounded[value] == nil {
      rounded[value] = graph[value].consumers.last { isRounding(graph[$0]) }.map {
        graph[$0].outputs[0]
      }
    }
    return true
  }

  /// Whether there is a kernel on `bfloat16` for a node.
  public static func takes(_ node: Node, _ graph: Graph) -> Bool { narrowForm(node, graph) != nil }

  private func isRounding(_ node: Node) -> Bool { (node.op as? Cast)?.to == .bfloat16 }

  /// The operator on narrow operands; nil where there is no kernel for it.
  private static func narrowForm(_ node: Node, _ graph: Graph) -> (any Operator)? {
    guard node.inputs.count >= 2, let x = node.inputs[0].flatMap({ graph[$0].type.tensor }) else {
      return nil
    }
    if let product = node.op as? MatMul, product.sumType == nil, product.isPlain,
      let y = node.inputs[1], graph[y].constant == nil, let right = graph[y].type.tensor,
      x.dataType == .float32, right.dataType == .float32, (x.rank ?? 0) >= 2, (right.rank ?? 0) >= 2
    {
      return MatMul(sumType: .float32)
    }
    guard let weights = node.inputs[1].flatMap({ graph[$0].constant }),
      x.dataType == .float32, weights.dataType == .float32, weights.count > 0
    else { return nil }
    if var conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast {
      guard let dims = x.dims, dims.count <= 4, let channels = dims[1].value else { return nil }
      let isDepthwise = conv.group == channels && weights.shape[0] == channels && channels > 1
      guard isDepthwise || channels / max(1, conv.group) % 2 == 0 else { return nil }
      conv.sumType = .float32
      return conv
    }
    if let product = node.op as? MatMul, product.sumType == nil, weights.rank == 2,
      weights.shape[0] % 2 == 0
    {
      return MatMul(sumType: .float32)
    }
    return nil
  }
}
