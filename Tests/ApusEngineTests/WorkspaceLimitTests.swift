// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusCPU
import ApusKernel
import ApusTestSupport
import Testing

/// A limit on workspace is kept, and whoever gives it is told what it costs.
@Suite(.enabled(if: CPUDescription.isa != .portable)) struct WorkspaceLimitTests {
  private func configuration(_ limit: Int?, cache: String? = nil) -> BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.workspaceLimit = limit
    configuration.timingCachePath = cache
    configuration.level = 1
    return configuration
  }

  /// A convolution over pixels with zeros around them, which are copied into the workspace.
  private func padded(channels: Int, layers: Int = 1) throws -> Graph {
    var b = GraphBuilder("padded")
    var generator = SeededGenerator(seed: 5)
    let x = b.input("x", .float32, [1, Dim(channels), 12, 12])
    var y = x
    for layer in 0..<layers {
      let w = b.constant("w\(layer)", try generator.tensor(.float32, shape: [channels, channels, 3, 3 + 2 * layer]))
      y = try b.apply(Conv(pads: [1, 1 + layer, 1, 1 + layer]), [y, w], name: "conv\(layer)")
    }
    return try b.finish(outputs: [("y", y)])
  }

  /// The largest number of a message.
  private func number(in text: String?) throws -> Int {
    let words = (text ?? "").split(separator: " ")
    return try #require(words.compactMap { Int($0) }.max())
  }

  /// What the candidates needed that were refused.
  private func workspaces(_ engine: Engine) -> [Int] {
    engine.report.tuned.flatMap(\.refusals).map(\.reason).compactMap { reason in
      reason.hasPrefix("needs ") ? Int(reason.split(separator: " ")[1]) : nil
    }
  }

  @Test func whereNothingFitsTheErrorNamesTheLayersAndTheSmallestWorkspace() throws {
    let graph = try padded(channels: 4, layers: 2)
    let error = #expect(throws: ApusError.self) { _ = try Builder(configuration(0)).build(graph) }
    let text = error?.description ?? ""
    #expect(error?.code == .resourceLimit)
    #expect(text.contains("conv0") && text.contains("conv1"), "\(text)")
    // The hint is right: with that much every layer has a kernel, with a byte less one has none.
    let need = try number(in: error?.hint)
    #expect(need > 0)
    let engine = try Builder(configuration(need)).build(graph)
    #expect(engine.report.tuned.allSatisfy { !$0.winner.contains("portable") })
    #expect(throws: ApusError.self) { _ = try Builder(configuration(need - 1)).build(graph) }
  }

  @Test func aLimitThatExcludesTheExpectedKernelIsNoted() throws {
    // Winograd needs memory for transformed tiles, a product of windows only for the padded image.
    let graph = try padded(channels: 64)
    let free = try Builder(configuration(nil)).build(graph)
    #expect(free.report.notes.allSatisfy { !$0.contains("workspace") })
    let error = #expect(throws: ApusError.self) { _ = try Builder(configuration(0)).build(graph) }
    let smallest = try number(in: error?.hint)
    let engine = try Builder(configuration(smallest)).build(graph)
    #expect(workspaces(engine).allSatisfy { $0 > smallest })
    let note = engine.report.notes.first { $0.contains("workspace limit of \(smallest) bytes") }
    #expect(note?.contains("conv0") == true, "\(engine.report.notes)")
    let enough = try number(in: note)
    let roomy = try Builder(configuration(enough)).build(graph)
    #expect(roomy.report.notes.allSatisfy { !$0.contains("workspace") })
  }

  @Test func timingsMadeWithoutALimitDoNotBreakIt() throws {
    let path = "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).cache"
    defer { FileIO.remove(path) }
    let graph = try padded(channels: 64)
    let error = #expect(throws: ApusError.self) { _ = try Builder(configuration(0)).build(graph) }
    let smallest = try number(in: error?.hint)
    let free = try Builder(configuration(nil, cache: path)).build(graph)
    let limited = try Builder(configuration(smallest, cache: path)).build(graph)
    let refused = limited.report.tuned.flatMap(\.refusals).filter { $0.reason.hasPrefix("needs ") }.map(\.id)
    #expect(!refused.isEmpty)
    #expect(limited.report.tuned.allSatisfy { !refused.contains($0.winner) })
    // And the other way round: what won under the limit is not what an unlimited build finds.
    let again = try Builder(configuration(nil, cache: path)).build(graph)
    #expect(again.report.tuned.map(\.winner) == free.report.tuned.map(\.winner))
    #expect(again.report.tuned.contains { $0.fromCache })
  }

  /// Engines choose kernels for shapes that they meet later, and keep the limit there.
  @Test func otherShapesKeepTheLimit() throws {
    var b = GraphBuilder("dynamic")
    var generator = SeededGenerator(seed: 5)
    let x = b.input("x", .float32, [1, Dim(64), .symbol("H"), .symbol("W")])
    let w = b.constant("w", try generator.tensor(.float32, shape: [64, 64, 3, 3]))
    let graph = try b.finish(
      outputs: [("y", try b.apply(Conv(pads: [1, 1, 1, 1]), [x, w], name: "conv0"))])
    let sizes = [6, 8, 32].map { [1, 64, $0, $0] }
    var none = configuration(0)
    none.shapes["x"] = BuilderConfiguration.ShapeRange(
      minimum: sizes[0], optimum: sizes[1], maximum: sizes[2])
    let error = #expect(throws: ApusError.self) { _ = try Builder(none).build(graph) }
    var limited = none
    limited.workspaceLimit = try number(in: error?.hint)
    func run(_ configuration: BuilderConfiguration, _ size: Int) throws -> Tensor? {
      let path = "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).plan"
      defer { FileIO.remove(path) }
      try Builder(configuration).build(graph).save(path: path)
      let image = try Tensor((0..<64 * size * size).map { Float($0 % 17) - 8 }, shape: [1, 64, size, size])
      return try Engine.load(path: path).makeContext().run(["x": image])["y"]
    }
    let refused = #expect(throws: ApusError.self) { _ = try run(limited, 24) }
    #expect(refused?.code == .resourceLimit && refused?.description.contains("conv0") == true, "\(String(describing: refused))")
    var enough = limited
    enough.workspaceLimit = try 4 * number(in: refused?.hint)
    var free = limited
    free.workspaceLimit = nil
    let (y, wanted) = (try #require(try run(enough, 24)), try #require(try run(free, 24)))
    #expect(TensorDifference(y, wanted).relativeL2 < 1e-4)
  }
}
