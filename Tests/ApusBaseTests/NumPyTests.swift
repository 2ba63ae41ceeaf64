// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor
import Testing

@Suite struct NumPyTests {
  /// `savez_compressed(a=(arange(600) % 7).reshape(20, 30), t=["ab", "c"])`.
  static let compressed = bytes(
    hex: """
      504b03042d0000000800000021007342a7d7ffffffffffffffff05001400612e6e707901001000e00900000000
      00006e000000000000009bec17ea1b10c9c850c650ad9e925a9c5ca46ea5a06e9366a2aea3a09e965f54529498
      179f5f94920a12774bcc294e058a17672416a402f91a46063a0ac6069a3a0ab50a64022e063068b007120e4004
      c40d40bc00880f388cca8dca8dca8dca8dca8dca8dca8dca8dca912e0700504b03042d00000008000000210094
      ed3db7ffffffffffffffff05001400742e6e70790100100090000000000000004e000000000000009bec17ea1b
      10c9c850c650ad9e925a9c5ca46ea5a06e136aa4aea3a09e965f54529498179f5f94920a12774bcc294e058a17
      672416a402f91a463a9a3a0ab50a1400ae4406068624204e66800000504b01022d032d00000008000000210073
      42a7d76e000000e0090000050000000000000000000000800100000000612e6e7079504b01022d032d00000008
      000000210094ed3db74e000000900000000500000000000000000000008001a5000000742e6e7079504b050600
      00000002000200660000002a0100000000
      """)

  /// `save(asfortranarray(arange(6, dtype=">i4").reshape(2, 3)))` without the header's padding.
  static let bigEndianFortran: [UInt8] = {
    let text = "{'descr': '>i4', 'fortran_order': True, 'shape': (2, 3), }\n"
    var bytes: [UInt8] = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, UInt8(text.utf8.count), 0]
    bytes += Array(text.utf8)
    for value in [0, 3, 1, 4, 2, 5] as [UInt8] { bytes += [0, 0, 0, value] }
    return bytes
  }()

  static func bytes(hex: String) -> [UInt8] {
    let digits = hex.compactMap(\.hexDigitValue)
    return stride(from: 0, to: digits.count - 1, by: 2).map {
      UInt8(digits[$0] << 4 | digits[$0 + 1])
    }
  }

  @Test func readsCompressedArchive() throws {
    let arrays = try NumPy.readArchive(bytes: Self.compressed)
    #expect(arrays.map(\.name) == ["a", "t"])
    #expect(arrays[0].tensor.shape == [20, 30])
    #expect(arrays[0].tensor.floats() == (0..<600).map { Float($0 % 7) })
    #expect(arrays[1].tensor.strings == ["ab", "c"])
  }

  @Test func readsForeignOrders() throws {
    let tensor = try NumPy.readArray(bytes: Self.bigEndianFortran)
    #expect(tensor.dataType == .int32)
    #expect(tensor.shape == [2, 3])
    #expect(tensor.ints() == [0, 1, 2, 3, 4, 5])
  }

  @Test(arguments: [
    DataType.float32, .float64, .float16, .int8, .uint8, .int16, .uint16, .int32, .uint32, .int64,
    .uint64, .bool, .complex64, .complex128,
  ])
  func roundTripsEveryType(_ type: DataType) throws {
    for shape in [[], [0], [3], [2, 0, 4], [2, 3, 5]] as [[Int]] {
      let count = shape.reduce(1, *) * (type.isComplex ? 2 : 1)
      let tensor = try Tensor((0..<count).map { Double($0 % 2) }, type, shape: shape)
      let again = try NumPy.readArray(bytes: NumPy.encode(tensor))
      #expect(again.dataType == type)
      #expect(again.shape == shape)
      #expect(Array(again.bytes) == Array(tensor.bytes))
    }
  }

  @Test func roundTripsArchive() throws {
    let a = try Tensor([1, 2, 3, 4, 5, 6], shape: [2, 3])
    let b = try Tensor(strings: ["x", "", "häß"], shape: [3])
    let c = try Tensor([1.5, -2], .bfloat16, shape: [2])
    let arrays = try NumPy.readArchive(
      bytes: NumPy.encodeArchive([("a", a), ("b/c", b), ("small", c)]))
    #expect(arrays.map(\.name) == ["a", "b/c", "small"])
    #expect(arrays[0].tensor.floats() == [1, 2, 3, 4, 5, 6])
    #expect(arrays[1].tensor.strings == ["x", "", "häß"])
    #expect(arrays[2].tensor.dataType == .float32)
    #expect(arrays[2].tensor.floats() == [1.5, -2])
    #expect(throws: ApusError.self) { try NumPy.encodeArchive([("a", a), ("a", a)]) }
  }

  @Test func truncationIsAnError() throws {
    for file in [Self.compressed, Self.bigEndianFortran] {
      for count in file.indices {
        let part = Array(file[..<count])
        #expect(throws: ApusError.self) { try NumPy.readArchive(bytes: part) }
        #expect(throws: ApusError.self) { try NumPy.readArray(bytes: part) }
      }
    }
  }

  @Test func damageNeverTraps() throws {
    var generator = SeededGenerator(seed: 7)
    let stored = try NumPy.encodeArchive([("a", Tensor([1, 2, 3], shape: [3]))])
    for file in [Self.compressed, Self.bigEndianFortran, stored] {
      for _ in 0..<4000 {
        var bytes = file
        for _ in 0..<Int.random(in: 1...4, using: &generator) {
          bytes[Int.random(in: bytes.indices, using: &generator)] = UInt8.random(
            in: 0...255, using: &generator)
        }
        _ = try? NumPy.readArchive(bytes: bytes)
        _ = try? NumPy.readArray(bytes: bytes)
      }
    }
  }

  @Test func hugeShapesAreErrors() {
    for shape in [
      "(9223372036854775807, 9)", "(1099511627776,)", "(4, -1)", "(0, 99999999999999999999)",
    ] {
      let text = "{'descr': '<f4', 'fortran_order': False, 'shape': \(shape), }"
      let bytes =
        [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, UInt8(text.utf8.count), 0] + Array(text.utf8)
      #expect(throws: ApusError.self) { try NumPy.readArray(bytes: bytes) }
    }
  }
}

/// A small reproducible generator.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
