// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `conv(x, w, b) -> conv(x, w) + b` in channels-last order, so that the bias is one more term of the
/// epilogue and kernels know no special case for it.
public struct SplitConvolutionBias: Pass {
  public let name = "SplitConvolutionBias"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard let op = node.op as? Conv, op.isChannelsLast, node.inputs.count > 2,
        let bias = node.inputs[2], context.claim(name, node.name)
      else { continue }
      var patch = GraphPatch(rule: name, replacing: [id])
      let product = patch.add(op, node.inputs.prefix(2).map { $0.map { .existing($0) } })
      patch.replace(node.outputs[0], with: patch.add(Add(), [product, .existing(bias)]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
