// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusEngine
import ApusGraph
import ApusONNX
import ApusProto
import ApusTensor
import Testing

/// Damaged models and engines through the whole path: only clean errors, never a trap.
///
/// `APUS_FUZZ_COUNT` sets the number of mutations of each kind, `APUS_FUZZ_SEED` the first seed. A
/// mutation is a function of its seed alone.
@Suite(.serialized) struct EngineFuzzTests {
  private static let count =
    Int(Knob("APUS_FUZZ_COUNT", default: "11000", "mutations per fuzz test").text) ?? 11_000
  private static let firstSeed =
    UInt64(Knob("APUS_FUZZ_SEED", default: "1", "first seed of the fuzz tests").text) ?? 1

  private static func configuration() -> BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.threadCount = 1
    return configuration
  }

  @Test func damagedModels() throws {
    let samples = try FuzzModels.all()
    for sample in samples {
      let engine = try Builder(Self.configuration()).build(
        ONNXImporter().importModel(bytes: try sample.encoded()))
      _ = try engine.makeContext().run(engine.sampleInputs(Self.configuration()))
    }
    var built = 0
    var failed = 0
    for index in 0..<Self.count {
      let seed = Self.firstSeed + UInt64(index)
      var generator = SeededGenerator(seed: seed)
      let sample = samples[index % samples.count]
      let isWise = Int.random(in: 0..<4, using: &generator) > 0
      let bytes =
        isWise
        ? try ModelMutation.mutate(sample, using: &generator).encoded()
        : Mutation.mutate(try sample.encoded(), using: &generator)
      do {
        let graph = try ONNXImporter().importModel(bytes: bytes)
        guard Self.isSmall(graph) else { continue }
        let engine = try Builder(Self.configuration()).build(graph)
        built += 1
        guard index % 5 == 0 else { continue }
        _ = try engine.makeContext().run(engine.sampleInputs(Self.configuration()))
      } catch {
        failed += 1
        #expect(!error.message.isEmpty, "seed \(seed)")
        #expect(error.code != .internalError, "seed \(seed): \(error)")
      }
    }
    #expect(built > Self.count / 20)
    #expect(failed > Self.count / 20)
  }

  /// Whether running the graph costs next to nothing.
  private static func isSmall(_ graph: Graph) -> Bool {
    graph.values.allSatisfy { id in
      guard let shape = graph[id].type.tensor?.shape else { return true }
      return ((try? Tensor.checkedCount(shape)) ?? .max) < 100_000
    }
  }

  @Test func damagedEngines() throws {
    let engines = try FuzzModels.all().map { sample in
      try Builder(Self.configuration()).build(
        ONNXImporter().importModel(bytes: try sample.encoded())
      ).serialized()
    }
    var failed = 0
    for index in 0..<Self.count {
      let seed = Self.firstSeed + UInt64(index)
      var generator = SeededGenerator(seed: seed)
      let original = engines[index % engines.count]
      // Half of the damage has correct checksums, so that it reaches what is behind them.
      let bytes =
        index % 2 == 0
        ? Mutation.mutate(original, using: &generator)
        : try Self.damagedSection(of: original, using: &generator)
      do {
        let memory = try AlignedMemory(byteCount: bytes.count)
        bytes.withUnsafeBytes { memory.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        let engine = try Engine.load(
          UnsafeRawBufferPointer(start: memory.base, count: bytes.count), owner: memory,
          threadCount: 1)
        _ = try engine.makeContext()
      } catch {
        failed += 1
        #expect(!error.message.isEmpty, "seed \(seed)")
      }
    }
    #expect(failed > Self.count / 4)
  }

  /// The file with damage in one section and all checksums right.
  private static func damagedSection(
    of file: [UInt8], using generator: inout SeededGenerator
  ) throws -> [UInt8] {
    var sections: [(kind: EngineFile.Kind, bytes: [UInt8])] = try file.withUnsafeBytes { bytes in
      try EngineFile.sections(of: bytes).map { (kind: $0.key, bytes: Array($0.value)) }
    }
    sections.sort { $0.kind.rawValue < $1.kind.rawValue }
    let graph = sections.firstIndex { $0.kind == .graph } ?? 0
    let place =
      Bool.random(using: &generator)
      ? graph : Int.random(in: sections.indices, using: &generator)
    sections[place].bytes = Mutation.mutate(sections[place].bytes, using: &generator)
    let views = try sections.map { (kind: $0.kind, view: try ByteView(copying: $0.bytes)) }
    var result: [UInt8] = []
    try EngineFile.write(views.map { (kind: $0.kind, chunks: [$0.view.bytes]) }) { chunks in
      for chunk in chunks { result += chunk }
    }
    withExtendedLifetime(views) {}
    return result
  }
}
