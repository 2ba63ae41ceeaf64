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
      // Three channels have no pairs, so they get a fourth.
      #expect(sums == [.float32, .float32])
      #expect(anchors(engine).contains { ($0 as? PlanesToPixels)?.channels == 4 })
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

  @Test func weightsAreStoredInHalfPrecision() throws {
    var configuration = BuilderConfiguration()
    let graph = try SmallNetworks.residual()
    let wide = try Builder(configuration).build(graph)
    configuration.precision = .fp16
    let engine = try Builder(configuration).build(graph)
    let types = engine.graph.nodes.compactMap { id -> DataType? in
      guard anchor(engine, id) is Conv || anchor(engine, id) is MatMul else { return nil }
      return engine.graph[id].inputs[1].flatMap { engine.graph[$0].type.tensor?.dataType }
    }
    #expect(types == [.float16, .float16, .float16])
    var generator = SeededGenerator(seed: 5)
    let inputs = ["x": try generator.tensor(.float32, shape: [2, 3, 13, 11])]
    let a = try #require(try engine.makeContext().run(inputs)["y"])
    let b = try #require(try wide.makeContext().run(inputs)["y"])
    let error = TensorDifference(a, b).relativeL2
    #expect(error < 1e-3 && error > 0)
  }

  @Test func weightsThatOverflowHalfPrecisionKeepTheirLayerWide() throws {
    var b = GraphBuilder("large")
    let x = b.input("x", .float32, [2, 4])
    var values = [Float](repeating: 0.5, count: 12)
    values[3] = 7e4
    values[5] = -1e6
    let large = b.constant("large", try Tensor(values, shape: [4, 3]))
    let small = b.constant("small", try SmallNetworks.weights([3, 2], seed: 1))
    let y = try b.apply(MatMul(), [x, large], name: "first")
    let z = try b.apply(MatMul(), [y, small], name: "second")
    var configuration = BuilderConfiguration()
    configuration.precision = .fp16
    let engine = try Builder(configuration).build(try b.finish(outputs: [("z", z)]))
    #expect(engine.report.notes.contains { $0.contains("'first'") && $0.contains("2 of 12") })
    let inputs = ["x": try Tensor([1, 2, 3, 4, -1, 0, 1, 2], shape: [2, 4])]
    let result = try #require(try engine.makeContext().run(inputs)["z"]?.floats())
    #expect(!result.contains { !$0.isFinite })
  }

  private func anchor(_ engine: Engine, _ id: NodeID) -> any Operator {
    (engine.graph[id].op as? Fused)?.anchor ?? engine.graph[id].op
  }
}
