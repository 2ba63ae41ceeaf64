// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `b(a(x))` becomes a chain of `a` and `b`: a depthwise convolution with the convolution before it, the 1x1
/// convolution behind it, or both, where nobody else reads what lies between them; or an elementwise operator with the
/// 1x1 convolution that reads its result, such as the product that scales channels in squeeze and excitation; or
/// a convolution and the maximum pooling that reads its result. Kernels may then compute them in strips of rows. Results
/// stay as they are, bit for bit.
///
/// Whether that is faster is not known here: the builder measures `candidates` and joins those that are. Run as
/// a pass, all are joined.
public struct ChainConvolutions: Pass {
  public let name = "ChainConvolutions"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for nodes in try candidates(in: graph, context) where context.claim(name, graph[nodes[0]].name) {
      try join(nodes, &graph)
      count += 1
    }
    return count
  }

  /// The nodes of each possible chain, in order; no node is in two of them.
  public func candidates(in graph: Graph, _ context: PassContext) throws(ApusError) -> [[NodeID]] {
    var chains: [[NodeID]] = []
    var taken: Set<NodeID> = []
    for id in try graph.topologicalOrder() {
      guard kind(id, graph) == .depthwise else { continue }
      var nodes = [id]
      if let input = graph[id].inputs[0], let before = graph[input].producer,
        let first = kind(before, graph), first != .depthwise, !taken.contains(before),
        isLink(before, to: id, graph, context)
      {
        nodes.insert(before, at: 0)
      }
      if let behind = graph[graph[id].outputs[0]].consumers.first, kind(behind, graph) == .pixelwise,
        isLink(id, to: behind, graph, context)
      {
        nodes.append(behind)
      }
      guard nodes.count > 1 else { continue }
      taken.formUnion(nodes)
      chains.append(nodes)
    }
    for id in try graph.topologicalOrder() where !taken.contains(id) {
      guard kind(id, graph) == .pixelwise, let input = graph[id].inputs[0],
        let before = graph[input].producer, isElementwise(before, graph), graph.useCount(input) == 1
      else { continue }
      if meetsConcatenation(before, id, graph) {
        context.refuse(name, graph[id].name, because: "it may read or write part of a concatenation in place")
        continue
      }
      chains.append([before, id])
      taken.formUnion([before, id])
    }
    for id in try graph.topologicalOrder() {
      guard graph[id].op is MaxPool, graph[id].outputs.count == 1, let input = graph[id].inputs[0],
        let before = graph[input].producer, !taken.contains(before),
        let kind = kind(before, graph), kind != .depthwise, isLink(before, to: id, graph, context)
      else { continue }
      if meetsConcatenation(before, id, graph) {
        context.refuse(name, graph[id].name, because: "it may read or write part of a concatenation in place")
        continue
      }
      chains.append([before, id])
    }
    return chains
  }

  /// What can be computed in strips: 1x1 convolutions that move by one, depthwise ones, and as the first operator
  /// others that are too large for Winograd's algorithm or move too far.
  private enum Kind { case pixelwise, depthwise, windowed }

  /// Whether a node goes over the pixels of operand 0, with other operands that are the same for all pixels of
  /// an image.
  private func isElementwise(_ id: NodeID, _ graph: Graph) -> Bool {
    let node = graph[id]
    guard node.op is any PointwiseOperator, node.outputs.count == 1,
      let dims = graph[node.outputs[0]].type.tensor?.dims, dims.count == 4
    else { return false }
    return node.inputs.enumerated().allSatisfy { index, operand in
      guard let operand, let type = graph[operand].type.tensor, let own = type.dims else { return false }
      if index == 0 { return own == dims }
      if own.allSatisfy({ $0.value == 1 }) { return true }
      guard own.last == dims.last, own.count <= 4 else { return false }
      let isForEach = own.count == 4 && own[0] == dims[0]
      return own.dropFirst(isForEach ? 1 : 0).dropLast().allSatisfy { $0.value == 1 }
    }
  }

  /// Whether what two nodes read or make together is a concatenation, or goes into one: kernels for chains do not
  /// take tensors with gaps between their rows.
  private func meetsConcatenation(_ first: NodeID, _ last: NodeID, _ graph: Graph) -> Bool {
    guard let input = graph[first].inputs[0] else { return false }
    let values = [input, graph[last].outputs[0]]
    let nodes = values.flatMap { graph[$0].consumers } + [graph[input].producer].compactMap { $0 }
    return nodes.contains { graph[$0].op is Concat }
  }

  /// What kind of convolution of two axes a node is, with or without an epilogue.
  private func kind(_ id: NodeID, _ graph: Graph) -> Kind? {
    let node = graph[id]
    let fused = node.op as? Fused
    let count = fused?.anchorInputCount ?? node.inputs.count
    guard let conv = (fused?.anchor ?? node.op) as? Conv, conv.isChannelsLast, count == 2,
      node.outputs.count == 1, let x = node.inputs[0], let w = node.inputs[1],
      let weights = graph[w].constant, weights.shape.count == 4,
      let channels = graph[x].type.tensor?.dims?.last?.value
    else { return nil }
    let outputs = weights.shape[3]
    if conv.group > 1 {
      return conv.group == channels && outputs == channels ? .depthwise : nil
    }
    let isPlain = weights.shape[0] == 1 && weights.shape[1] == 1
      && conv.strides.allSatisfy { $0 == 1 } && conv.pads.allSatisfy { $0 == 0 }
    if isPlain { return .pixelwise }
    let isTransformed = weights.shape[0] == 3 && weights.shape[1] == 3 && conv.strides.allSatisfy { $0 == 1 }
    return conv.group == 1 && !isTransformed ? .windowed : nil
  }

  /// Whether `reader` alone reads the result of `id`, as operand 0, and the epilogue of `id` can run on rows
  /// that are kept for a moment only.
  private func isLink(_ id: NodeID, to reader: NodeID, _ graph: Graph, _ context: PassContext) -> Bool {
    let node = graph[id]
    let value = node.outputs[0]
    guard graph.useCount(value) == 1, graph[reader].inputs[0] == value else {
      context.refuse(name, node.name, because: "its result has several readers")
      return false
    }
    let isRowless = node.inputs.dropFirst(2).allSatisfy { operand in
      operand.flatMap { graph[$0].type.tensor?.dims }?.dropLast().allSatisfy { $0.value == 1 } ?? false
    }
    if !isRowless {
      context.refuse(name, node.name, because: "its epilogue reads a tensor of the result's shape")
    }
    return isRowless
  }

  /// The operator that computes what nodes do one after the other.
  public static func chain(_ nodes: [NodeID], _ graph: Graph) -> Chain {
    Chain(nodes.map { graph[$0].op }, operandCounts: nodes.map { graph[$0].inputs.count - 1 })
  }

  /// Puts a chain in the place of nodes that `candidates` gave.
  public func join(_ nodes: [NodeID], _ graph: inout Graph) throws(ApusError) {
    var patch = GraphPatch(rule: name, replacing: nodes)
    var operands = graph[nodes[0]].inputs.prefix(1)
    for id in nodes { operands += graph[id].inputs.dropFirst() }
    let result = patch.add(
      Self.chain(nodes, graph), operands.map { $0.map { .existing($0) } })
    patch.replace(graph[nodes[nodes.count - 1]].outputs[0], with: result)
    try patch.apply(to: &graph)
  }
}
