// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

@Suite struct FusionTests {
  /// Builds a graph on the fake device, where every kernel is the reference, and compares with the
  /// unoptimised graph.
  private func check(_ graph: Graph, shapes: [[Int]]) throws -> Engine {
    let engine = try Builder(backend: FakeDeviceBackend()).build(graph)
    var generator = SeededGenerator(seed: 5)
    let inputs = try zip(graph.inputs, shapes).map { id, shape -> RuntimeValue? in
      .tensor(try generator.tensor(graph[id].type.tensor!.dataType, shape: shape))
    }
    let expected = try ReferenceInterpreter.run(graph, inputs: inputs)
    let got = try engine.makeContext().run(inputs)
    for (a, b) in zip(got, expected) {
      let difference = TensorDifference(try #require(a.tensor), try #require(b.tensor))
      #expect(difference.relativeL2 < 1e-5, "\(difference)")
    }
    return engine
  }

  @Test func aResidualNetworkBecomesFewKernels() throws {
    let graph = try SmallNetworks.residual()
    let engine = try check(graph, shapes: [[2, 3, 13, 11]])
    let names = engine.graph.nodes.map { engine.graph[$0].op.name }
    #expect(!names.contains("BatchNormalization"))
    #expect(names.filter { $0 == "Fused" }.count == 2, "\(names)")
    #expect(!names.contains("Relu") && !names.contains("Add"), "\(names)")
    // One transpose on the way in; the way out is a flattening of one pixel.
    #expect(names.filter { $0 == "Transpose" }.count <= 2, "\(names)")
  }

  @Test func normalisationWrittenAsMultiplyAndAddFoldsToo() throws {
    var b = GraphBuilder("decomposed")
    let x = b.input("x", .float32, [1, 4, 6, 6])
    let w = b.constant("w", try SmallNetworks.weights([6, 4, 3, 3], seed: 1))
    var y = try b.apply(Conv(pads: [1, 1, 1, 1]), [x, w])
    y = try b.apply(Mul(), [y, b.constant("s", try SmallNetworks.weights([6, 1, 1], seed: 2))])
    y = try b.apply(Add(), [y, b.constant("t", try SmallNetworks.weights([1, 6, 1, 1], seed: 3))])
    y = try b.apply(Sigmoid(), [y])
    let engine = try check(try b.finish(outputs: [("y", y)]), shapes: [[1, 4, 6, 6]])
    let names = engine.graph.nodes.map { engine.graph[$0].op.name }
    #expect(names.filter { $0 != "Transpose" } == ["Fused"], "\(names)")
  }

  @Test func identitiesAreSeenThrough() throws {
    var b = GraphBuilder("dropout")
    let x = b.input("x", .float32, [3, 8])
    let w = b.constant("w", try SmallNetworks.weights([8, 8], seed: 1))
    let y = try b.apply(MatMul(), [try b.apply(Identity(), [x]), w])
    let z = try b.apply(Relu(), [try b.apply(Identity(), [y])])
    let graph = try b.finish(outputs: [("z", try b.apply(Identity(), [z])), ("x again", try b.apply(Identity(), [x]))])
    let engine = try check(graph, shapes: [[3, 8]])
    let names = engine.graph.nodes.map { engine.graph[$0].op.name }
    #expect(names.filter { $0 == "Fused" }.count == 1 && names.count <= 3, "\(names)")
    #expect(engine.outputs.map(\.name) == ["z", "x again"])
  }

  @Test func aResultWithTwoReadersIsNotAbsorbed() throws {
    var b = GraphBuilder("two readers")
    let x = b.input("x", .float32, [3, 8])
    let w = b.constant("w", try SmallNetworks.weights([8, 8], seed: 1))
    let y = try b.apply(MatMul(), [x, w])
    let p = try b.apply(Relu(), [y])
    let q = try b.apply(MatMul(), [y, w])
    let engine = try check(try b.finish(outputs: [("p", p), ("q", q)]), shapes: [[3, 8]])
    #expect(engine.graph.nodes.contains { engine.graph[$0].op is MatMul })
    #expect(engine.report.refusals.contains { $0.reason.contains("several readers") })
  }

  /// Scores of a quantised attention: bytes are widened, scaled and masked, and the softmax is rounded.
  private func maskedSoftmax(mask: [Dim], axis: Int = -1) throws -> Graph {
    var b = GraphBuilder("scores")
    let x = b.input("x", .uint8, [2, 3, 4, 20])
    let m = b.input("mask", .float32, mask)
    let z = b.constant("z", try .scalar(128, .uint8))
    let zero = b.constant("zero", try .scalar(0, .uint8))
    var y = try b.apply(DequantizeLinear(), [x, b.constant("s", try .scalar(0.1, .float32)), z])
    y = try b.apply(Div(), [y, b.constant("eight", try .scalar(8, .float32))])
    y = try b.apply(Add(), [y, m])
    y = try b.apply(Softmax(axis: axis), [y])
    y = try b.apply(QuantizeLinear(), [y, b.constant("t", try .scalar(0.005, .float32)), zero])
    var graph = try b.finish(outputs: [("y", y)])
    _ = try LowerQuantization().run(on: &graph, in: PassContext())
    return graph
  }

  @Test func aSoftmaxTakesInWhatComesBeforeAndBehind() throws {
    for mask in [[2, 1, 1, 20], [1, 1, 1, 20], [2, 3, 4, 20], [1]] as [[Int]] {
      let graph = try maskedSoftmax(mask: mask.map { Dim($0) })
      let engine = try check(graph, shapes: [[2, 3, 4, 20], mask])
      let ops = engine.graph.nodes.map { engine.graph[$0].op }
      let anchor = (ops.first as? Fused)?.anchor as? Prologued
      #expect(ops.count == 1 && anchor?.anchor is Softmax, "\(mask) \(ops.map(\.name))")
    }
  }

  @Test func aSoftmaxLeavesOutWhatItsKernelsCannotRead() throws {
    // One row for several, but not for neighbours.
    let engine = try check(
      try maskedSoftmax(mask: [1, 3, 4, 20]), shapes: [[2, 3, 4, 20], [1, 3, 4, 20]])
    let names = engine.graph.nodes.map { engine.graph[$0].op.name }
    #expect(names == ["Pointwise", "Fused"], "\(names)")
    #expect(engine.report.refusals.contains { $0.reason.contains("between rows in another way") })
    // Not along rows.
    let across = try check(
      try maskedSoftmax(mask: [1], axis: 1), shapes: [[2, 3, 4, 20], [1]])
    let others = across.graph.nodes.map { across.graph[$0].op.name }.sorted()
    #expect(others == ["Pointwise", "Pointwise", "Softmax"], "\(others)")
  }

  @Test func quantisePairsKeepTheirRounding() throws {
    var b = GraphBuilder("pairs")
    let x = b.input("x", .float32, [5, 7])
    let s = b.constant("s", try .scalar(0.037, .float32))
    let z = b.constant("z", try .scalar(3, .uint8))
    let q = try b.apply(QuantizeLinear(), [x, s, z])
    let y = try b.apply(DequantizeLinear(), [q, s, z])
    let engine = try check(try b.finish(outputs: [("y", y)]), shapes: [[5, 7]])
    #expect(engine.graph.nodeCount == 1)
  }

  @Test func passesMayBeSwitchedOffAndLimited() throws {
    let context = PassContext()
    var graph = try SmallNetworks.residual()
    let before = try graph.text()
    #expect(try ConvertToChannelsLast().run(on: &graph, in: context) > 0)
    #expect(try graph.text() != before)
    #expect(context.rewriteCounts["ConvertToChannelsLast"] == 3)
  }
}
