// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `conv(x, w) * s -> conv(x, w * s)` for a constant per-channel or scalar `s`; a bias operand or a
/// constant added in between is scaled too: `(conv + b) * s -> conv' + b * s`.
public struct FoldScaleIntoWeights: Pass {
  public let name = "FoldScaleIntoWeights"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      guard graph[id].op is Mul, let (scale, value) = operands(id, graph) else { continue }
      var done = try foldDirectly(id, value, scale, &graph, context)
      if !done { done = try swapWithAdd(id, value, scale, &graph, context) }
      if done { count += 1 }
    }
    return count
  }

  /// The constant scale and the scaled value of a multiplication.
  private func operands(_ id: NodeID, _ graph: Graph) -> (scale: Tensor, value: ValueID)? {
    let inputs = graph[id].inputs
    guard inputs.count == 2, let a = inputs[0], let b = inputs[1] else { return nil }
    if let scale = graph[b].constant, graph[a].constant == nil { return (scale, a) }
    if let scale = graph[a].constant, graph[b].constant == nil { return (scale, b) }
    return nil
  }

  private func foldDirectly(
    _ id: NodeID, _ value: ValueID, _ scale: Tensor, _ graph: inout Graph, _ context: PassContext
  ) throws(ApusError) -> Bool {
    guard let convID = graph[value].producer, let conv = graph[convID].op as? Conv,
      !conv.isChannelsLast, conv.sumType == nil, graph.useCount(value) == 1,
      let weightID = graph[convID].inputs[1], let weight = graph[weightID].constant,
      let channels = weight.shape.first,
      let factors = Self.perChannel(scale, channels: channels, rank: weight.rank)
    else { return false }
    var inputs: [GraphPatch.Reference?] = graph[convID].inputs.map { $0.map { .existing($0) } }
    var patch = GraphPatch(rule: name, replacing: [convID, id])
    if inputs.count > 2, let biasID = graph[convID].inputs[2] {
      guard let bias = graph[biasID].constant else {
        context.refuse(name, graph[id].name, because: "the bias is not a constant")
        return false
      }
      inputs[2] = patch.constant(graph[biasID].name, try Self.scaled(bias, factors))
    }
    guard context.claim(name, graph[id].name) else { return false }
    inputs[1] = patch.constant(graph[weightID].name, try Self.scaled(weight, factors))
    patch.replace(graph[id].outputs[0], with: patch.add(conv, inputs))
    try patch.apply(to: &graph)
    return true
  }

  private func swapWithAdd(
    _ id: NodeID, _ value: ValueID, _ scale: Tensor, _ graph: inout Graph, _ context: PassContext
  ) throws(ApusError) -> Bool {
    guard let addID = graph[value].producer, graph[addID].op is Add, graph.useCount(value) == 1,
      let a = graph[addID].inputs[0], let b = graph[addID].inputs[1]
    else { return false }
    let (sum, constantID) = graph[b].constant != nil ? (a, b) : (b, a)
    guard let constant = graph[constantID].constant, let convID = graph[sum].producer,
      let conv = graph[convID].op as? Conv, conv.sumType == nil, graph.useCount(sum) == 1,
      let weight = graph[convID].inputs[1].flatMap({ graph[$0].constant }),
      let channels = weight.shape.first,
      Self.perChannel(scale, channels: channels, rank: weight.rank) != nil,
      Self.perChannel(constant, channels: channels, rank: weight.rank) != nil,
      case .tensor(let shift)? = try Mul().evaluate([.tensor(constant), .tensor(scale)]).first,
      context.claim(name, graph[id].name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [addID, id])
    let factor = patch.constant("\(graph[id].name).scale", scale)
    let product = patch.add(Mul(), [.existing(sum), factor])
    let moved = patch.constant("\(graph[addID].name).shift", shift)
    patch.replace(graph[id].outputs[0], with: patch.add(Add(), [product, moved]))
    try patch.apply(to: &graph)
    return true
  }

  /// The factor of each channel when `scale` varies along the channel axis only (axis 1 of a result
  /// of `rank` axes).
  private static func perChannel(_ scale: Tensor, channels: Int, rank: Int) -> [Double]? {
    guard scale.dataType.isFloat, scale.rank <= rank else { return nil }
    if scale.count == 1 { return Array(repeating: scale.doubles()[0], count: channels) }
    let shape = Array(repeating: 1, count: rank - scale.rank) + scale.shape
    guard scale.count == channels, shape[1] == channels else { return nil }
    return scale.doubles()
  }

  /// The tensor with everything under channel `i` of axis 0 multiplied by factor `i`.
  private static func scaled(_ tensor: Tensor, _ factors: [Double]) throws(ApusError) -> Tensor {
    var values = tensor.doubles()
    guard !factors.isEmpty, values.count % factors.count == 0 else {
      throw ApusError(.internalError, "\(factors.count) factors for \(tensor.type)")
    }
    let run = values.count / factors.count
    for index in values.indices { values[index] *= factors[index / max(1, run)] }
    return try Tensor(values, tensor.dataType, shape: tensor.shape)
  }
}
