// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// Reductions know their axes whichever way a model gives them.
@Suite struct ReductionAxesTests {
  @Test func reductionsReadTheirAxes() throws {
    let axes = try Tensor([-1, 1], .int64, shape: [2])
    var graph = try OneOperator.rewrite(
      ReadReductionAxes(), Reduce(function: .mean), [axes], input: [2, 3, 4])
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 1 })
    graph = try OneOperator.rewrite(
      ReadReductionAxes(), Reduce(function: .sum, noopWithEmptyAxes: true),
      [try Tensor([Int64](), .int64, shape: [0])], input: [2, 3])
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 1 })
    graph = try OneOperator.rewrite(
      ReadReductionAxes(), Reduce(function: .mean), [axes], input: [2, 3, 4], computed: true)
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 2 })
  }
}
