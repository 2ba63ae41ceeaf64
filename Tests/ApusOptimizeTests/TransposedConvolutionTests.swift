// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// Transposed convolutions in phases.
@Suite struct TransposedConvolutionTests {
  private func names(_ graph: Graph) -> [String] { graph.nodes.map { graph[$0].op.name } }

  @Test func transposedConvolutionsAreSplit() throws {
    let cases: [(ConvTranspose, input: [Int], weights: [Int])] = [
      (ConvTranspose(strides: [2, 2]), [1, 4, 3, 5], [4, 6, 2, 2]),
      (ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1]), [2, 3, 4, 4], [3, 5, 4, 4]),
      (
        ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1], outputPadding: [1, 1]), [1, 3, 4, 3],
        [3, 2, 3, 3]
      ),
      (ConvTranspose(dilations: [2, 3]), [1, 2, 5, 5], [2, 3, 3, 2]),
      (ConvTranspose(strides: [3], dilations: [2], pads: [2, 1]), [1, 2, 5], [2, 3, 5]),
      (ConvTranspose(strides: [2, 2], group: 6), [1, 6, 3, 3], [6, 1, 4, 4]),
      (ConvTranspose(strides: [2, 2], group: 3), [1, 6, 3, 3], [6, 20, 2, 2]),
      (ConvTranspose(strides: [1, 1]), [2, 5, 1, 1], [5, 3, 4, 4]),
      (ConvTranspose(strides: [2, 2], autoPad: .sameUpper), [1, 3, 4, 5], [3, 2, 3, 3]),
      (ConvTranspose(strides: [2, 2], outputShape: [9, 8]), [1, 3, 4, 5], [3, 2, 3, 3]),
      (
        ConvTranspose(strides: [1, 2, 2], pads: [0, 1, 0, 1, 0, 0]), [1, 2, 2, 3, 3],
        [2, 4, 2, 3, 2]
      ),
    ]
    for (op, input, shape) in cases {
      let weights = try SmallNetworks.weights(shape, seed: 1)
      let bias = try SmallNetworks.weights([shape[1] * op.group], seed: 2)
      let graph = try OneOperator.rewrite(SplitTransposedConvolutions(), op, [weights, bias], input: input)
      #expect(names(graph).contains("PhasedConvTranspose"), "\(op.attributes)")
    }
  }

  @Test func othersStay() throws {
    let weights = try SmallNetworks.weights([2, 3, 2, 2], seed: 1)
    for op in [
      ConvTranspose(strides: [3, 3]), ConvTranspose(strides: [2, 2], dilations: [2, 2]),
    ] {
      let graph = try OneOperator.rewrite(SplitTransposedConvolutions(), op, [weights], input: [1, 2, 3, 3])
      #expect(names(graph) == ["ConvTranspose"])
    }
    let graph = try OneOperator.rewrite(
      SplitTransposedConvolutions(), ConvTranspose(), [weights], input: [1, 2, 3, 3],
      computed: true)
    #expect(names(graph) == ["ConvTranspose"])
  }

  @Test func whatFollowsIsFused() throws {
    var b = GraphBuilder("decoder")
    let x = b.input("x", .float32, [1, 8, 5, 6])
    let w = b.constant("w", try SmallNetworks.weights([8, 12, 4, 4], seed: 1))
    let bias = b.constant("bias", try SmallNetworks.weights([12], seed: 2))
    var y = try b.apply(ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1]), [x, w, bias])
    y = try b.apply(Mul(), [y, b.constant("s", try SmallNetworks.weights([12, 1, 1], seed: 3))])
    y = try b.apply(Relu(), [y])
    let v = b.constant("v", try SmallNetworks.weights([4, 12, 3, 3], seed: 4))
    y = try b.apply(Conv(pads: [1, 1, 1, 1]), [y, v])
    let graph = try b.finish(outputs: [("y", y)])
    let engine = try Builder().build(graph)
    let left = names(engine.graph).filter { $0 != "Transpose" }
    #expect(left.count == 2 && left.contains("Fused"), "\(left)")
    var generator = SeededGenerator(seed: 3)
    let input = RuntimeValue.tensor(try generator.tensor(.float32, shape: [1, 8, 5, 6]))
    let want = try #require(try ReferenceInterpreter.run(graph, inputs: [input])[0].tensor)
    let got = try #require(try engine.makeContext().run([input])[0].tensor)
    #expect(TensorDifference(got, want).relativeL2 < 1e-5)
  }
}
