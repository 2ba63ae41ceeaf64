// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `conv(x) -> toFirst(convLast(toLast(x)))` and likewise for the other spatial operators: in
/// channels-last order a 1x1 convolution is a matrix product and every kernel reads channels
/// contiguously. `PropagateTransposes` then removes the transposes between neighbours.
public struct ConvertToChannelsLast: Pass {
  public let name = "ConvertToChannelsLast"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard let op = node.op as? any ChannelsLastConvertible, !op.isChannelsLast,
        let x = node.inputs[0], let rank = graph[x].type.tensor?.rank, rank >= 3,
        let converted = op.channelsLast(), node.outputs.count == 1,
        context.claim(name, node.name)
      else { continue }
      let toLast = [0] + Array(2..<rank) + [1]
      let toFirst = [0, rank - 1] + Array(1..<(rank - 1))
      var patch = GraphPatch(rule: name, replacing: [id])
      var inputs: [GraphPatch.Reference?] = node.inputs.map { $0.map { .existing($0) } }
      inputs[0] = patch.add(Transpose(permutation: toLast), [inputs[0]])
      for (index, permutation) in op.weightPermutations(rank: rank).sorted(by: { $0.key < $1.key })
      where index < inputs.count && inputs[index] != nil {
        inputs[index] = patch.add(Transpose(permutation: permutation), [inputs[index]])
      }
      let result = patch.add(converted, inputs)
      patch.replace(
        node.outputs[0], with: patch.add(Transpose(permutation: toFirst), [result]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
