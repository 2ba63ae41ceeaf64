// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// Reductions know their axes whichever way a model gives them.
@Suite struct ReductionAxesTests {
  /// Runs a network of one operator before and after a pass.
  private func rewrite(
    _ pass: any Pass, _ op: any Operator, _ operands: [Tensor], input: [Int], computed: Bool = false
  ) throws -> Graph {
    var b = GraphBuilder("one")
    let x = b.input("x", .float32, input.map { Dim($0) })
    var values: [ValueID?] = [x]
    for (index, tensor) in operands.enumerated() {
      values.append(
        computed
          ? b.input("w\(index)", tensor.dataType, tensor.shape.map { Dim($0) })
          : b.constant("w\(index)", tensor))
    }
    let graph = try b.finish(outputs: [("y", try b.apply(op, values))])
    var rewritten = graph
    _ = try pass.run(on: &rewritten, in: PassContext())
    var generator = SeededGenerator(seed: 3)
    var inputs: [RuntimeValue?] = [.tensor(try generator.tensor(.float32, shape: input))]
    if computed { inputs += operands.map { .tensor($0) } }
    let want = try #require(try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor)
    let got = try #require(try ReferenceInterpreter.run(rewritten, inputs: inputs)[0].tensor)
    #expect(TensorDifference(got, want).relativeL2 < 1e-6, "\(op.attributes)")
    return rewritten
  }

  @Test func reductionsReadTheirAxes() throws {
    let axes = try Tensor([-1, 1], .int64, shape: [2])
    var graph = try rewrite(
      ReadReductionAxes(), Reduce(function: .mean), [axes], input: [2, 3, 4])
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 1 })
    graph = try rewrite(
      ReadReductionAxes(), Reduce(function: .sum, noopWithEmptyAxes: true),
      [try Tensor([Int64](), .int64, shape: [0])], input: [2, 3])
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 1 })
    graph = try rewrite(
      ReadReductionAxes(), Reduce(function: .mean), [axes], input: [2, 3, 4], computed: true)
    #expect(graph.nodes.allSatisfy { graph[$0].inputs.count == 2 })
  }
}
