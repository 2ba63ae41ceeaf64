// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Products of two computed matrices of narrow elements read a right side whose rows and columns were
/// exchanged as it was: their kernels put the right side into an order of their own anyway, from either
/// one, and moving single bytes is slow.
public struct ReadTransposedRightSides: Pass {
  public let name = "ReadTransposedRightSides"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      let node = graph[id]
      guard var product = node.op as? MatMul, product.sumType != nil, !product.transposesRight,
        let right = node.inputs[1], let depth = graph[right].type.tensor?.dims?.dropLast().last?.value,
        let type = graph[right].type.tensor?.dataType, depth * type.bitWidth % 32 == 0,
        type.bitWidth < 32, graph.useCount(right) == 1, let producer = graph[right].producer,
        let transpose = graph[producer].op as? Transpose, let source = graph[producer].inputs[0],
        let permutation = transpose.permutation, let innermost = permutation.indices.last,
        innermost >= 1, permutation[innermost - 1] == innermost, context.claim(name, node.name)
      else { continue }
      var rest = permutation
      rest.swapAt(innermost - 1, innermost)
      product.transposesRight = true
      var patch = GraphPatch(rule: name, replacing: [id, producer])
      let turned =
        rest == Array(rest.indices)
        ? GraphPatch.Reference.existing(source)
        : patch.add(Transpose(permutation: rest), [.existing(source)])
      let result = patch.add(product, [node.inputs[0].map { .existing($0) }, turned])
      patch.replace(node.outputs[0], with: result)
      try patch.apply(to: &graph)
      count += 1
    }
    return count
  }
}
