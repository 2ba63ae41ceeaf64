// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `convTranspose(x, w, b) -> toFirst(phased(toLast(x), w') + b)` where the weights are constant: in the
/// phases of its stride a transposed convolution is a set of ordinary ones, without the zeros that a
/// stretched input would have. Sums are those of the same products in another order.
///
/// Along axes where the input has one element the kernel itself is the result, whatever the stride; a
/// stride of the kernel's size then leaves no zeros either. Groups of few results, as in channel-by-channel
/// upsampling, are joined until a vector of results is used: weights between groups are zeros.
public struct SplitTransposedConvolutions: Pass {
  public let name = "SplitTransposedConvolutions"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard let op = node.op as? ConvTranspose, node.inputs.count >= 2, let x = node.inputs[0],
        let rank = graph[x].type.tensor?.rank
      else { continue }
      guard let weights = node.inputs[1].flatMap({ graph[$0].constant }), weights.count > 0 else {
        context.refuse(name, node.name, because: "its weights are computed")
        continue
      }
      let spatial = graph[x].type.tensor?.dims?.dropFirst(2).map(\.value) ?? []
      guard weights.rank == rank, var phased = Self.phased(op, weights, spatial: spatial) else {
        context.refuse(
          name, node.name,
          because: "its kernel is smaller than the stride, or its dilations share a factor with it")
        continue
      }
      guard context.claim(name, node.name) else { continue }
      var patch = GraphPatch(rule: name, replacing: [id])
      let toLast = [0] + Array(2..<rank) + [1]
      let toFirst = [0, rank - 1] + Array(1..<(rank - 1))
      let input = patch.add(Transpose(permutation: toLast), [.existing(x)])
      let joined = try Self.joiningGroups(weights, &phased.plain.group)
      let constant = patch.constant("\(node.name).weights", try phased.phased(joined))
      var result = patch.add(phased, [input, constant])
      if node.inputs.count > 2, let bias = node.inputs[2] {
        result = patch.add(Add(), [result, .existing(bias)])
      }
      patch.replace(node.outputs[0], with: patch.add(Transpose(permutation: toFirst), [result]))
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }

  /// The operator in phases; `spatial` holds the input's sizes, as far as they are known.
  static func phased(_ op: ConvTranspose, _ weights: Tensor, spatial: [Int?])
    -> PhasedConvTranspose?
  {
    var op = op
    let kernel = Array(weights.shape.dropFirst(2))
    let strides = op.strides.isEmpty ? kernel.map { _ in 1 } : op.strides
    if op.dilations.allSatisfy({ $0 == 1 }), op.autoPad == .notset || op.autoPad == .valid,
      strides.count == kernel.count, spatial.count == kernel.count
    {
      op.strides = kernel.indices.map { spatial[$0] == 1 ? kernel[$0] : strides[$0] }
    }
    return PhasedConvTranspose(op, kernel: kernel)
  }

  /// Results of a group that fill the vectors of any machine.
  private static let widestGroup = 32

  /// Weights `[C, OC/group, kernel...]` with as many neighbouring groups made one as have at most
  /// `widestGroup` results; `group` becomes their number.
  private static func joiningGroups(_ weights: Tensor, _ group: inout Int) throws(ApusError)
    -> Tensor
  {
    let (channels, outputs) = (weights.shape[0], weights.shape[1])
    let groups = group
    guard groups > 1, outputs > 0, channels % groups == 0,
      let joined = (1...max(1, min(groups, widestGroup / outputs))).last(where: { groups % $0 == 0 }
      ),
      joined > 1
    else { return weights }
    group = groups / joined
    let taps = weights.count / (channels * outputs)
    let row = outputs * taps
    let source = weights.doubles()
    var values = [Double](repeating: 0, count: channels * joined * row)
    for channel in 0..<channels {
      let slot = channel / (channels / groups) % joined
      for index in 0..<row {
        values[(channel * joined + slot) * row + index] = source[channel * row + index]
      }
    }
    return try Tensor(
      values, weights.dataType, shape: [channels, joined * outputs] + weights.shape.dropFirst(2))
  }
}
