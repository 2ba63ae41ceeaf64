// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor
import Testing

/// Weights as scaled integers in engine files.
@Suite(.enabled(if: ISA.current != .portable))
struct ByteWinogradEngineTests {
  private static func configuration() -> BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.threadCount = 1
    return configuration
  }

  /// A convolution of bytes that the estimate gives to Winograd.
  private static func graph() throws -> Graph {
    var generator = SeededGenerator(seed: 4)
    var b = GraphBuilder("bytes")
    let values = (0..<9 * 128 * 128).map { _ in Int64.random(in: -128...127, using: &generator) }
    let x = b.input("x", .uint8, [1, 24, 24, 128])
    let w = b.constant("w", try Tensor(values, .int8, shape: [3, 3, 128, 128]))
    let conv = Conv(
      strides: [1, 1], pads: [1, 1, 1, 1], channelsLast: true, sumType: .int32, padValue: 9)
    let steps = ScalarExpr.cast(.input(0), .float32) * .const(1.5e-4)
    let rounded = ScalarQuantization(steps: steps, zeroPoint: 90, type: .uint8).expression
    let y = try b.apply(
      Fused(anchor: conv, anchorInputCount: 2, epilogue: Epilogue(rounded, extraCount: 0)), [x, w],
      name: "conv")
    return try b.finish(outputs: [("y", y)])
  }

  @Test func engineFilesKeepScaledWeights() throws {
    let graph = try Self.graph()
    let built = try Builder(Self.configuration()).build(graph)
    let bytes = try built.serialized()
    let text = String(decoding: bytes, as: UTF8.self)
    #expect(text.contains("winograd[4, 128, 128, "))
    var generator = SeededGenerator(seed: 8)
    let x = try Tensor(
      (0..<24 * 24 * 128).map { _ in Int64.random(in: 0...255, using: &generator) }, .uint8,
      shape: [1, 24, 24, 128])
    let got = try built.makeContext().run(["x": x])["y"]
    let again = try Self.load(bytes).makeContext().run(["x": x])["y"]
    #expect(got?.doubles() == again?.doubles())
    var reference = Self.configuration()
    reference.isReference = true
    let want = try Builder(reference).build(graph).makeContext().run(["x": x])["y"]?.doubles() ?? []
    let differences = zip(got?.doubles() ?? [], want).map { abs($0 - $1) }
    #expect(differences.count == want.count && !want.isEmpty)
    #expect(differences.max() ?? 2 <= 1)
    #expect(differences.filter { $0 > 0 }.count <= want.count / 50)
  }

  @Test func damagedFilesAreErrorsOrRun() throws {
    let bytes = try Builder(Self.configuration()).build(Self.graph()).serialized()
    var sections: [(kind: EngineFile.Kind, bytes: [UInt8])] = try bytes.withUnsafeBytes { bytes in
      try EngineFile.sections(of: bytes).map { (kind: $0.key, bytes: Array($0.value)) }
    }
    sections.sort { $0.kind.rawValue < $1.kind.rawValue }
    guard let graph = sections.firstIndex(where: { $0.kind == .graph }) else { return }
    let text = String(decoding: sections[graph].bytes, as: UTF8.self)
    guard let start = text.range(of: "winograd["),
      let end = text[start.upperBound...].firstIndex(of: "]")
    else {
      Issue.record("no transformed weights")
      return
    }
    let largest = Int(Int32.max)
    for sizes in [
      [4, 128, 128, 64], [4, 128, 128, 64, 2], [4, 128, 128, 64, 2, 65], [4, 128, 128, 64, 2, 0],
      [4, 128, 128, 64, 1, 64], [4, 128, 128, 64, 4, 64], [2, 128, 128, 64, 2, 64],
      [4, 128, 128, 64, 2, 1],
      [4, largest, largest, 64, 2, 64], [4, largest, largest, largest, 64, 64],
      [4, 1, largest, 1, 2, 64], [4, 64, 256, 64, 2, 64], [4, 128, 128, 64, 2, 64, 1], [],
    ] {
      let list = sizes.map(String.init).joined(separator: ", ")
      var damaged = sections
      damaged[graph].bytes = Array(
        (text[..<start.upperBound] + list + text[end...]).utf8)
      let file = try Self.file(damaged)
      // An error, or an engine that runs; a trap ends the tests.
      do {
        let engine = try Self.load(file)
        _ = try engine.makeContext().run(["x": Tensor(.uint8, shape: [1, 24, 24, 128])])
      } catch {
        #expect(!error.message.isEmpty, "\(sizes)")
      }
    }
  }

  private static func load(_ bytes: [UInt8]) throws(ApusError) -> Engine {
    let memory = try AlignedMemory(byteCount: bytes.count)
    bytes.withUnsafeBytes { memory.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    return try Engine.load(
      UnsafeRawBufferPointer(start: memory.base, count: bytes.count), owner: memory, threadCount: 1)
  }

  private static func file(_ sections: [(kind: EngineFile.Kind, bytes: [UInt8])]) throws -> [UInt8]
  {
    let views = try sections.map { (kind: $0.kind, view: try ByteView(copying: $0.bytes)) }
    var result: [UInt8] = []
    try EngineFile.write(views.map { (kind: $0.kind, chunks: [$0.view.bytes]) }) { chunks in
      for chunk in chunks { result += chunk }
    }
    withExtendedLifetime(views) {}
    return result
  }
}
