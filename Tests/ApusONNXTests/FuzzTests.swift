// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusEngine
import ApusGraph
import ApusONNX
import ApusProto
import Testing

/// Damaged model files give errors, never traps.
@Suite struct DecoderFuzzTests {
  static func sample() throws -> [UInt8] {
    let body = Make.graph([Make.node("Mix", ["h", "w"], ["t"])], inputs: [], outputs: ["t"])
    let function = Make.function(
      "local", "F", ["p"], ["r"],
      [Make.node("Mix", ["p"], ["r"], [Make.attribute("kind", reference: "k")])], attributes: ["k"])
    return try Make.model(
      Make.graph(
        [
          Make.node("Mix", ["x"], ["h"], [Make.attribute("kind", 3)]),
          Make.node("F", ["h"], ["f"], domain: "local", [Make.attribute("k", 5)]),
          Make.node(
            "Branch", ["c", "f"], ["y"],
            [Make.attribute("then", body), Make.attribute("else", body)]),
        ], inputs: [Make.input("x", [-1, 2]), Make.input("c", [], type: 9)], outputs: ["y"],
        tensors: [
          Make.tensor("w", [2], [1, 2]),
          Make.tensor("big", [20, 10], [Float](repeating: 1, count: 200), raw: true),
        ]), functions: [function], domains: ["local"])
  }

  @Test func truncation() throws {
    let bytes = try Self.sample()
    #expect(Make.failure(bytes) == nil)
    var errors = 0
    for count in 0..<bytes.count where Make.failure(Array(bytes[..<count])) != nil { errors += 1 }
    // A cut between two fields can leave a smaller valid model.
    #expect(errors > bytes.count * 9 / 10)
  }

  @Test func mutation() throws {
    let bytes = try Self.sample()
    var generator = SeededGenerator(seed: 11)
    for _ in 0..<10_000 { _ = Make.failure(Mutation.mutate(bytes, using: &generator)) }
  }
}

/// Random damage to bytes.
enum Mutation {
  static func mutate(_ bytes: [UInt8], using generator: inout SeededGenerator) -> [UInt8] {
    var bytes = bytes
    for _ in 0..<Int.random(in: 1...3, using: &generator) {
      guard !bytes.isEmpty else { return bytes }
      let place = Int.random(in: bytes.indices, using: &generator)
      switch Int.random(in: 0..<6, using: &generator) {
      case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
      case 1: bytes[place] = UInt8.random(in: 0...255, using: &generator)
      case 2: bytes[place] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &generator) ?? 0
      case 3:
        bytes.removeSubrange(
          place..<min(bytes.count, place + Int.random(in: 1...8, using: &generator)))
      case 4:
        let end = min(bytes.count, place + Int.random(in: 1...16, using: &generator))
        bytes.insert(contentsOf: bytes[place..<end], at: place)
      default: bytes.removeSubrange(place...)
      }
    }
    return bytes
  }
}
