// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// What widens for a mean and others goes into its readers.
@Suite struct WidenInReadersTests {
  /// A quantised tensor with channels last, dequantised, and what reads it.
  private func rewrite(
    zeroPoint: Int = 12, type: DataType = .uint8, axes: [Int] = [1, 2],
    _ readers: (inout GraphBuilder, ValueID) throws -> [(name: String, value: ValueID)]
  ) throws -> (graph: Graph, count: Int) {
    var b = GraphBuilder("quantised")
    let x = b.input("x", .float32, [2, 5, 4, 6])
    let s = b.constant("s", try .scalar(0.031, .float32))
    let z = b.constant("z", try .scalar(Double(zeroPoint), type))
    let q = try b.apply(QuantizeLinear(), [x, s, z])
    let y = try b.apply(DequantizeLinear(), [q, s, z])
    let outputs = try readers(&b, y)
    var graph = try b.finish(outputs: outputs)
    _ = try LowerQuantization().run(on: &graph, in: PassContext())
    let before = graph
    let count = try WidenInReaders().run(on: &graph, in: PassContext())
    _ = try RemoveDeadNodes().run(on: &graph, in: PassContext())
    try GraphVerifier.verify(graph)
    var generator = SeededGenerator(seed: 3)
    let input = RuntimeValue.tensor(try generator.tensor(.float32, shape: [2, 5, 4, 6]))
    let expected = try ReferenceInterpreter.run(before, inputs: [input])
    for (a, b) in zip(try ReferenceInterpreter.run(graph, inputs: [input]), expected) {
      let difference = TensorDifference(try #require(a.tensor), try #require(b.tensor))
      #expect(difference.relativeL2 < 1e-6, "\(difference)")
    }
    return (graph, count)
  }

  private func mean(_ b: inout GraphBuilder, _ y: ValueID, _ axes: [Int] = [1, 2]) throws -> ValueID {
    try b.apply(Reduce(function: .mean, axes: axes), [y])
  }

  @Test(arguments: [(0, DataType.uint8), (12, .uint8), (-7, .int8), (0, .int8)])
  func aMeanAndAProductReadBytes(zeroPoint: Int, type: DataType) throws {
    let (graph, count) = try rewrite(zeroPoint: zeroPoint, type: type) { b, y in
      let gate = try b.apply(Sigmoid(), [try mean(&b, y)])
      return [("p", try b.apply(Mul(), [y, gate])), ("n", try b.apply(Mul(), [y, y]))]
    }
    #expect(count == 1)
    let reduce = try #require(graph.nodes.first { graph[$0].op is Reduce })
    let bytes = try #require(graph[reduce].inputs[0])
    #expect(graph[bytes].type.tensor?.dataType == type && graph.useCount(bytes) == 3)
    #expect((graph[reduce].op as? Reduce)?.sumType == .float32)
  }

  @Test func scaledTensorsOfShortFloatsAreRounded() throws {
    var b = GraphBuilder("excitation")
    let x = b.input("x", .float32, [2, 5, 4, 6])
    let y = try b.apply(Relu(), [x])
    let gate = try b.apply(Sigmoid(), [try mean(&b, y)])
    let scaled = try b.apply(Mul(), [y, gate])
    let out = try b.apply(Cast(to: .bfloat16), [scaled])
    var graph = try b.finish(outputs: [("p", out)])
    let before = graph
    let context = PassContext()
    #expect(try RoundScaledValues().run(on: &graph, in: context) == 1)
    _ = try MergeCommonSubexpressions().run(on: &graph, in: context)
    #expect(try RoundScaledValues().run(on: &graph, in: context) == 0)
    #expect(try WidenInReaders().run(on: &graph, in: context) == 1)
    _ = try RemoveDeadNodes().run(on: &graph, in: context)
    try GraphVerifier.verify(graph)
    let reduce = try #require(graph.nodes.first { graph[$0].op is Reduce })
    #expect(graph[try #require(graph[reduce].inputs[0])].type.tensor?.dataType == .bfloat16)
    // ReLU, rounding, mean, sigmoid, product, rounding.
    #expect(graph.nodeCount == 6)
    var generator = SeededGenerator(seed: 4)
    let input = RuntimeValue.tensor(try generator.tensor(.float32, shape: [2, 5, 4, 6]))
    let want = try #require(try ReferenceInterpreter.run(before, inputs: [input])[0].tensor)
    let got = try #require(try ReferenceInterpreter.run(graph, inputs: [input])[0].tensor)
    #expect(TensorDifference(got, want).relativeL2 < 4e-3)
  }

  @Test func tensorsWithOtherReadersAreNotRounded() throws {
    var b = GraphBuilder("others")
    let x = b.input("x", .float32, [2, 5, 4, 6])
    let y = try b.apply(Relu(), [x])
    let gate = try b.apply(Sigmoid(), [try mean(&b, y)])
    let scaled = try b.apply(Mul(), [y, gate])
    var graph = try b.finish(outputs: [
      ("p", try b.apply(Cast(to: .bfloat16), [scaled])), ("q", scaled),
    ])
    #expect(try RoundScaledValues().run(on: &graph, in: PassContext()) == 0)
  }

  @Test func aMeanAloneReadsBytes() throws {
    #expect(try rewrite { b, y in [("m", try mean(&b, y))] }.count == 1)
  }

  @Test func otherReadersKeepTheNumbers() throws {
    // No mean; one along the channels; one beside a reader that takes no bytes; a result of the network.
    #expect(try rewrite { b, y in
      [("p", try b.apply(Mul(), [y, y])), ("r", try b.apply(Relu(), [y]))]
    }.count == 0)
    #expect(try rewrite { b, y in [("m", try mean(&b, y, [3]))] }.count == 0)
    #expect(try rewrite { b, y in
      [("m", try mean(&b, y)), ("s", try b.apply(Softmax(axis: 3), [y]))]
    }.count == 0)
    #expect(try rewrite { b, y in [("m", try mean(&b, y)), ("y", y)] }.count == 0)
  }
}
