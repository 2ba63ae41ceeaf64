// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Moves factors from the channels of tensors into the weights around them, as `ChannelGroups` found they may be:
/// results stay what they were, but for the last bits.
public struct EqualizeChannels: Pass {
  public let name = "EqualizeChannels"
  /// The factors.
  public let scaling: ChannelScaling

  /// Creates the pass.
  public init(_ scaling: ChannelScaling) { self.scaling = scaling }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    // All or nothing: what one node divides, others multiply.
    guard !scaling.isEmpty, context.isEnabled(name) else { return 0 }
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      let (down, up) = (scaling.outputs[node.name], scaling.inputs[node.name])
      guard down != nil || up != nil else { continue }
      if let shift = ChannelGroups.shift(node, graph), let down {
        try divide(id, shift, down, &graph)
      } else if let limits = ChannelGroups.limits(node, graph), let down {
        try limit(id, limits, down, &graph)
      } else if ChannelGroups.isProduct(node, graph) {
        try scaleWeights(id, down, up, &graph)
      }
      count += 1
    }
    return count
  }

  private func scaleWeights(_ id: NodeID, _ down: [Int]?, _ up: [Int]?, _ graph: inout Graph)
    throws(ApusError)
  {
    let node = graph[id]
    guard let weights = node.inputs[1].flatMap({ graph[$0].constant }) else { return }
    let place = ChannelOfWeight(node, weights)
    guard down.map({ $0.count == place.outputs }) ?? true,
      up.map({ $0.count == place.inputs }) ?? true
    else {
      throw ApusError(
        .invalidArgument, "the calibration's channel scaling does not fit", location: node.location)
    }
    var values = weights.floats()
    for index in values.indices {
      if let up { values[index] *= ChannelScaling.factor(up[place.input(of: index)]) }
      if let down { values[index] *= ChannelScaling.factor(-down[place.output(of: index)]) }
    }
    let scaled = graph.addConstant(
      graph.uniqueName("\(node.name).equalized"), try Tensor(values, shape: weights.shape))
    graph.setInput(id, 1, to: scaled)
    if let down, node.inputs.count > 2, node.inputs[2] != nil { try divide(id, 2, down, &graph) }
  }

  /// Gives a node limits for each channel.
  private func limit(
    _ id: NodeID, _ limits: (low: Double?, high: Double?), _ down: [Int], _ graph: inout Graph
  ) throws(ApusError) {
    let rank = graph[graph[id].outputs[0]].type.tensor?.rank ?? 4
    var shape = Array(repeating: 1, count: rank)
    shape[rank == 3 ? 2 : 1] = down.count
    for (index, limit) in [limits.low, limits.high].enumerated() {
      // Zero is zero for all channels.
      guard let limit, limit != 0 else { continue }
      let values = down.map { Float(limit) * ChannelScaling.factor(-$0) }
      let constant = graph.addConstant(
        graph.uniqueName("\(graph[id].name).equalized_limit"), try Tensor(values, shape: shape))
      graph.setInput(id, index + 1, to: constant)
    }
  }

  /// Divides the constant operand of a node that has a number for each channel.
  private func divide(_ id: NodeID, _ index: Int, _ down: [Int], _ graph: inout Graph)
    throws(ApusError)
  {
    let node = graph[id]
    guard let constant = node.inputs[index].flatMap({ graph[$0].constant }) else { return }
    let values = zip(constant.floats(), down).map { $0 * ChannelScaling.factor(-$1) }
    let scaled = graph.addConstant(
      graph.uniqueName("\(node.name).equalized_bias"), try Tensor(values, shape: constant.shape))
    graph.setInput(id, index, to: scaled)
  }
}
