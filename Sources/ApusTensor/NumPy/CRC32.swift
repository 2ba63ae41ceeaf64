// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The CRC-32 of ZIP, eight bytes at a time.
struct CRC32 {
  private var state: UInt32 = 0xffff_ffff

  private static let tables: [[UInt32]] = {
    var tables = [[UInt32]](repeating: [UInt32](repeating: 0, count: 256), count: 8)
    for index in 0..<256 {
      var value = UInt32(index)
      for _ in 0..<8 { value = value & 1 == 1 ? 0xedb8_8320 ^ (value >> 1) : value >> 1 }
      tables[0][index] = value
    }
    for index in 0..<256 {
      for table in 1..<8 {
        let last = tables[table - 1][index]
        tables[table][index] = tables[0][Int(last & 0xff)] ^ (last >> 8)
      }
    }
    return tables
  }()

  /// The checksum of the bytes.
  static func of(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    var sum = CRC32()
    sum.update(bytes)
    return sum.value
  }

  /// The checksum of everything added.
  var value: UInt32 { ~state }

  /// Adds bytes.
  mutating func update(_ bytes: UnsafeRawBufferPointer) {
    var crc = state
    let t = Self.tables
    var index = 0
    while index + 8 <= bytes.count {
      let word =
        UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: index, as: UInt64.self))
        ^ UInt64(crc)
      let low = t[7][Int(word & 0xff)] ^ t[6][Int(word >> 8 & 0xff)]
      let second = t[5][Int(word >> 16 & 0xff)] ^ t[4][Int(word >> 24 & 0xff)]
      let third = t[3][Int(word >> 32 & 0xff)] ^ t[2][Int(word >> 40 & 0xff)]
      let high = t[1][Int(word >> 48 & 0xff)] ^ t[0][Int(word >> 56)]
      crc = low ^ second ^ third ^ high
      index += 8
    }
    while index < bytes.count {
      crc = t[0][Int((crc ^ UInt32(bytes[index])) & 0xff)] ^ (crc >> 8)
      index += 1
    }
    state = crc
  }
}
