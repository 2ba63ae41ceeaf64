// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `BatchNormalization(x) -> x * scale' + shift'` with per-channel constants, for inference:
/// `scale' = scale / sqrt(variance + epsilon)`, `shift' = bias - mean * scale'` (Ioffe and Szegedy,
/// 2015). What remains folds into a convolution or fuses like any pointwise operator.
public struct DecomposeBatchNormalization: Pass {
  public let name = "DecomposeBatchNormalization"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() {
      guard let op = graph[id].op as? BatchNormalization else { continue }
      let node = graph[id]
      guard !op.trainingMode, node.outputs.dropFirst().allSatisfy({ graph.useCount($0) == 0 }),
        let x = node.inputs[0], let rank = graph[x].type.tensor?.rank,
        let type = graph[x].type.tensor?.dataType
      else { continue }
      let parameters = node.inputs.dropFirst().compactMap { $0.flatMap { graph[$0].constant } }
      guard parameters.count == 4 else {
        context.refuse(name, node.name, because: "its parameters are not constants")
        continue
      }
      guard context.claim(name, node.name) else { continue }
      let (scale, shift) = try Self.fold(parameters, op.epsilon, type, rank: rank)
      var patch = GraphPatch(rule: name, replacing: [id])
      let product = patch.add(
        Mul(), [.existing(x), patch.constant("\(node.name).scale", scale)])
      let sum = patch.add(Add(), [product, patch.constant("\(node.name).shift", shift)])
      patch.replace(node.outputs[0], with: sum)
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }

  private static func fold(_ parameters: [Tensor], _ epsilon: Double, _ type: DataType, rank: Int)
    throws(ApusError) -> (scale: Tensor, shift: Tensor)
  {
    let values = parameters.map { $0.doubles() }
    let channels = values[0].count
    guard values.allSatisfy({ $0.count == channels }) else {
      throw ApusError(.typeMismatch, "the parameters of a batch normalisation differ in length")
    }
    let scale = values[0].indices.map { values[0][$0] / (values[3][$0] + epsilon).squareRoot() }
    let shift = values[0].indices.map { values[1][$0] - values[2][$0] * scale[$0] }
    let shape = [channels] + Array(repeating: 1, count: max(0, rank - 2))
    return (try Tensor(scale, type, shape: shape), try Tensor(shift, type, shape: shape))
  }
}
