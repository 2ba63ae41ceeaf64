// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Testing

@Suite struct PrecisionTests {
  /// Builds a graph with narrow products and compares with the graph as it is.
  private func build(_ graph: Graph, shapes: [[Int]], on backend: FakeDeviceBackend?) throws -> Engine {
    var configuration = BuilderConfiguration()
    configuration.precision = .bf16
    let engine = try backend.map { try Builder(configuration, backend: $0).build(graph) }
      ?? Builder(configuration).build(graph)
    var generator = SeededGenerator(seed: 5)
    let inputs = try zip(graph.inputs, shapes).map { id, shape -> RuntimeValue? in
      .tensor(try generator.tensor(graph[id].type.tensor!.dataType, shape: shape))
    }
    let expected = try ReferenceInterpreter.run(graph, inputs: inputs)
    let got = try engine.makeContext().run(inputs)
    for (a, b) in zip(got, expected) {
      let difference = TensorDifference(try #require(a.tensor), try #require(b.tensor))
      #expect(difference.relativeL2 < 2e-2, "\(difference)")
    }
    return engine
  }

  private var narrow: FakeDeviceBackend { FakeDeviceBackend(fastTypes: [.float32, .bfloat16]) }

  private func anchors(_ engine: Engine) -> [any Operator] {
    engine.graph.nodes.map { (engine.graph[$0].op as? Fused)?.anchor ?? engine.graph[$0].op }
  }

  @Test func productsWithConstantWeightsBecomeNarrow() throws {
    let graph = try SmallNetworks.residual()
    for backend in [narrow, nil] {
      let engine = try build(graph, shapes: [[2, 3, 13, 11]], on: backend)
      guard backend != nil else { continue }
      let sums = anchors(engine).compactMap { ($0 as? Conv).map(\.sumType) }
      // Three channels have no pairs.
      #expect(sums.count == 2 && sums.contains(nil) && sums.contains(.float32))
      #expect(anchors(engine).contains { ($0 as? MatMul)?.sumType == .float32 })
    }
  }

  @Test func aValueWithTwoReadersIsStoredOnce() throws {
    var b = GraphBuilder("block")
    let x = b.input("x", .float32, [1, 8, 6, 6])
    let w = b.constant("w", try SmallNetworks.weights([8, 8, 1, 1], seed: 1))
    var y = try b.apply(Relu(), [try b.apply(Conv(), [x, w])])
    let pooled = try b.apply(MaxPool(PoolAttributes(kernel: [2, 2], strides: [2, 2])), [y])
    y = try b.apply(Conv(), [pooled, w])
    y = try b.apply(Add(), [y, pooled])
    y = try b.apply(Conv(), [y, w])
    let engine = try build(
      try b.finish(outputs: [("y", y)]), shapes: [[1, 8, 6, 6]], on: narrow)
    // All that lies between kernels is narrow, the pooled numbers too.
    let inner = engine.graph.nodes.dropLast().flatMap { engine.graph[$0].outputs }
    let wide = inner.filter { id in
      engine.graph[id].type.tensor?.dataType == .float32
        && !engine.graph[id].consumers.allSatisfy { engine.graph[$0].op is Transpose }
    }
    #expect(wide.isEmpty, "\(wide.map { engine.graph[$0].name })")
    #expect(engine.report.rewrites.contains { $0.0 == "ShareRoundedValues" })
    #expect(engine.report.rewrites.contains { $0.0 == "PushRoundingUp" })
  }

  @Test func devicesWithoutNarrowProductsKeepSinglePrecision() throws {
    let engine = try build(
      try SmallNetworks.residual(), shapes: [[2, 3, 13, 11]], on: FakeDeviceBackend())
    #expect(anchors(engine).allSatisfy { ($0 as? Conv)?.sumType == nil })
  }
}
