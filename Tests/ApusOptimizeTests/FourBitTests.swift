// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCalibration
import ApusTestSupport
import Testing

@Suite struct FourBitTests {
  private func network(_ first: Tensor) throws -> Graph {
    var b = GraphBuilder("layers")
    let x = b.input("x", .float32, [3, 70])
    let bias = b.constant("bias", try SmallNetworks.weights([50], seed: 3))
    let second = b.constant("second", try SmallNetworks.weights([50, 9], seed: 2))
    var y = try b.apply(MatMul(), [x, b.constant("first", first)], name: "first")
    y = try b.apply(Relu(), [try b.apply(Add(), [y, bias])])
    y = try b.apply(MatMul(), [y, second], name: "second")
    return try b.finish(outputs: [("y", y)])
  }

  private func configuration(group: Int = 32) -> BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.precision = .int4
    configuration.int4Group = group
    return configuration
  }

  private func anchors(_ engine: Engine) -> [any Operator] {
    engine.graph.nodes.map { (engine.graph[$0].op as? Fused)?.anchor ?? engine.graph[$0].op }
  }

  /// The error of an engine against the graph, relative.
  private func error(_ engine: Engine, _ graph: Graph) throws -> Double {
    var generator = SeededGenerator(seed: 5)
    let inputs: [RuntimeValue?] = [.tensor(try generator.tensor(.float32, shape: [3, 70]))]
    let wanted = try ReferenceInterpreter.run(graph, inputs: inputs)
    let got = try engine.makeContext().run(inputs)
    return TensorDifference(
      try #require(got[0].tensor), try #require(wanted[0].tensor)).relativeL2
  }

  @Test(arguments: [32, 64]) func productsTakeFourBits(group: Int) throws {
    let graph = try network(try SmallNetworks.weights([70, 50], seed: 1))
    let engine = try Builder(configuration(group: group)).build(graph)
    guard engine.device.fastTypes.contains(.uint4) else { return }
    let blocks = anchors(engine).compactMap { ($0 as? BlockQuantizedMatMul)?.block }
    // The second layer has fewer rows than a group of 64.
    #expect(blocks == (group == 32 ? [32, 32] : [64]))
    #expect(engine.constantByteCounts[.uint4]! >= 70 * 50 / 2)
    let noise = try error(engine, graph)
    #expect(noise > 1e-3 && noise < 0.15, "\(noise)")
    // What was rounded is computed as it is said.
    #expect(try error(engine, engine.graph) < 1e-5)
  }

  @Test func weightsThatAreNotFiniteKeepTheirLayer() throws {
    var values = try SmallNetworks.weights([70, 50], seed: 1).floats()
    values[7] = .infinity
    values[9] = .nan
    let engine = try Builder(configuration()).build(try network(try Tensor(values, shape: [70, 50])))
    guard engine.device.fastTypes.contains(.uint4) else { return }
    #expect(engine.report.notes.contains { $0.contains("'first'") && $0.contains("2 of 3500") })
    #expect(anchors(engine).contains { $0 is MatMul })
    #expect(anchors(engine).contains { $0 is BlockQuantizedMatMul })
  }

  @Test func layersAreChosenByName() throws {
    var configuration = configuration()
    configuration.precision = .fp32
    configuration.layerPrecisions = ["second": .int4]
    let engine = try Builder(configuration).build(
      try network(try SmallNetworks.weights([70, 50], seed: 1)))
    guard engine.device.fastTypes.contains(.uint4) else { return }
    #expect(anchors(engine).filter { $0 is BlockQuantizedMatMul }.count == 1)
  }

  @Test func layersOfFourBitsAreBlamed() throws {
    let graph = try network(try SmallNetworks.weights([70, 50], seed: 1))
    let engine = try Builder(configuration(group: 64)).build(graph)
    guard engine.device.fastTypes.contains(.uint4) else { return }
    var generator = SeededGenerator(seed: 5)
    let batches = [["x": try generator.tensor(.float32, shape: [3, 70])]]
    let blame = try Blame(of: graph, BuilderConfiguration(), engine: engine, batches: batches)
    #expect(blame.layers.map(\.precision) == ["int4"] && blame.error > 1e-6)
    #expect(abs(blame.layers[0].error - blame.error) < 0.01 * blame.error)
  }

  @Test func devicesWithoutKernelsComputeWithFloats() throws {
    let weights = try BlockRounding(try SmallNetworks.weights([70, 50], seed: 1), block: 32)
    var b = GraphBuilder("blocks")
    let x = b.input("x", .float32, [3, 70])
    let operands = [b.constant("numbers", weights.numbers), b.constant("scales", weights.scales)]
    let y = try b.apply(BlockQuantizedMatMul(block: 32), [x] + operands)
    let graph = try b.finish(outputs: [("y", y)])
    let engine = try Builder(configuration(), backend: FakeDeviceBackend()).build(graph)
    #expect(!anchors(engine).contains { $0 is BlockQuantizedMatMul })
    #expect(try error(engine, graph) < 1e-5)
  }

  @Test func signedScalesAndZeroPoints() throws {
    var generator = SeededGenerator(seed: 3)
    let even = try BlockRounding(try generator.tensor(.float32, shape: [100, 21]), block: 32)
    #expect(even.zeros == nil && even.scales.dataType == .float16 && even.scales.shape == [4, 21])
    #expect(even.noise < 0.006 * even.signal)
    // Numbers on one side of zero far from it: half of the levels would be wasted.
    let high = try Tensor(
      try generator.tensor(.float32, shape: [64, 5]).floats().map { 1.5 + $0 / 2 }, shape: [64, 5])
    let shifted = try BlockRounding(high, block: 32)
    #expect(shifted.zeros != nil && shifted.noise < 0.002 * shifted.signal)
    let small = try BlockRounding(
      try Tensor([Float](repeating: 1e-30, count: 64), shape: [32, 2]), block: 32)
    #expect(small.scales.dataType == .float32 && small.noise <= 1e-3 * small.signal)
    let empty = try BlockRounding(try Tensor(.float32, shape: [40, 3]), block: 32)
    #expect(empty.noise == 0)
    let weights = try BlockQuantizedMatMul(block: 32).weights(
      empty.numbers, scales: empty.scales, zeros: empty.zeros)
    #expect(weights.floats().allSatisfy { $0 == 0 })
  }
}
