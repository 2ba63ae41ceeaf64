// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Convolutions that engines compute together, and how that is decided.
@Suite(.enabled(if: CPUDescription.isa != .portable)) struct ChainEngineTests {
  private static let size = 40

  /// An inverted bottleneck whose wide tensor is too large for a second-level cache.
  private func network() throws -> Graph {
    var b = GraphBuilder("bottleneck")
    let x = b.input("x", .float32, [.symbol("n"), 8, Dim(Self.size), Dim(Self.size)])
    let wide = try layer(&b, x, [96, 8, 1, 1], seed: 1)
    let filtered = try layer(&b, wide, [96, 1, 3, 3], seed: 2, Conv(pads: [1, 1, 1, 1], group: 96))
    let y = try layer(&b, filtered, [8, 96, 1, 1], seed: 3)
    return try b.finish(outputs: [("y", try b.apply(Add(), [y, x]))])
  }

  private func layer(
    _ b: inout GraphBuilder, _ x: ValueID, _ weights: [Int], seed: UInt64, _ op: Conv = Conv()
  ) throws -> ValueID {
    let w = b.constant("w\(seed)", try SmallNetworks.weights(weights, seed: seed))
    return try b.apply(Relu(), [try b.apply(op, [x, w])])
  }

  /// Channels scaled by what a look at the whole image gives, then mixed.
  private func excitation() throws -> Graph {
    var b = GraphBuilder("excitation")
    let x = b.input("x", .float32, [.symbol("n"), 96, Dim(Self.size), Dim(Self.size)])
    let filtered = try layer(&b, x, [96, 1, 3, 3], seed: 2, Conv(pads: [1, 1, 1, 1], group: 96))
    let mean = try b.apply(Reduce(function: .mean, axes: [2, 3]), [filtered])
    let inner = try layer(&b, mean, [8, 96, 1, 1], seed: 4)
    let w = b.constant("w5", try SmallNetworks.weights([96, 8, 1, 1], seed: 5))
    let gate = try b.apply(Sigmoid(), [try b.apply(Conv(), [inner, w])])
    let y = try layer(&b, try b.apply(Mul(), [filtered, gate]), [8, 96, 1, 1], seed: 3)
    return try b.finish(outputs: [("y", y)])
  }

  @Test(arguments: [1, 3]) func scaledChannelsJoinTheProduct(threads: Int) throws {
    let graph = try excitation()
    var configuration = BuilderConfiguration()
    configuration.batch = 1
    configuration.level = 0
    configuration.threadCount = threads
    let engine = try Builder(configuration).build(graph)
    #expect(hasChain(engine))
    let context = try engine.makeContext()
    var generator = SeededGenerator(seed: 6)
    for batch in [1, 2, 3] {
      let x = try generator.tensor(.float32, shape: [batch, 96, Self.size, Self.size])
      let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      let got = try #require(try context.run(["x": x])["y"])
      let difference = TensorDifference(got, try #require(expected[0].tensor))
      #expect(difference.relativeL2 <= 1e-5, "\(difference)")
    }
  }

  private func engine(level: Int, threads: Int = 1, cache: String? = nil) throws -> Engine {
    var configuration = BuilderConfiguration()
    configuration.batch = 1
    configuration.level = level
    configuration.threadCount = threads
    configuration.timingCachePath = cache
    return try Builder(configuration).build(try network())
  }

  private func temporary(_ name: String) -> String {
    "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).\(name)"
  }

  private func hasChain(_ engine: Engine) -> Bool {
    engine.graph.nodes.contains { engine.graph[$0].op is Chain }
  }

  @Test(arguments: [1, 3]) func resultsAreThoseOfTheReference(threads: Int) throws {
    let graph = try network()
    let engine = try engine(level: 0, threads: threads)
    #expect(hasChain(engine))
    let path = temporary("plan")
    defer { FileIO.remove(path) }
    try engine.save(path: path)
    let loaded = try Engine.load(path: path, threadCount: threads)
    let context = try loaded.makeContext()
    var generator = SeededGenerator(seed: 5)
    // Sizes that the engine was not built for are chained, too.
    for batch in [1, 2, 3] {
      let x = try generator.tensor(.float32, shape: [batch, 8, Self.size, Self.size])
      let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      let got = try #require(try context.run(["x": x])["y"])
      let difference = TensorDifference(got, try #require(expected[0].tensor))
      #expect(difference.relativeL2 <= 1e-5, "\(difference)")
    }
  }

  @Test func theTimingCacheDecidesAgain() throws {
    let path = temporary("cache")
    defer { FileIO.remove(path) }
    _ = try engine(level: 1, cache: path)
    let first = try engine(level: 1, cache: path)
    let again = try engine(level: 1, cache: path)
    #expect(try first.serialized() == again.serialized())
    let tuned = try #require(first.report.tuned.first { $0.problem.hasPrefix("Chain") })
    #expect(tuned.measurements.contains { $0.id == "separate" } && tuned.measurements.count > 1)
    #expect(hasChain(first) == (tuned.winner != "separate"))

    // With the other choice in the cache the engine is built the other way.
    let text = try String(decoding: FileIO.read(path), as: UTF8.self)
    let other =
      tuned.winner != "separate"
      ? "separate" : try #require(tuned.measurements.first { $0.id != "separate" }).id
    let lines = text.split(separator: "\n").map { line in
      line.contains("\tChain{")
        ? String(line.replacing("\t\(tuned.winner)\t", with: "\t\(other)\t")) : String(line)
    }
    try FileIO.write(text: lines.joined(separator: "\n") + "\n", to: path)
    #expect(hasChain(try engine(level: 1, cache: path)) == (other != "separate"))
  }
}
