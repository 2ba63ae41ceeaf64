// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A 64-bit checksum for file sections and cache keys: eight bytes at a time through
/// multiply-xorshift mixing, stable across machines and versions. Not cryptographic.
public struct Checksum: Sendable {
  private var state: UInt64 = 0x9e37_79b9_7f4a_7c15
  private var byteCount: UInt64 = 0

  /// Creates the checksum of nothing.
  public init() {}

  /// Adds bytes.
  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    var lane = state
    let words = bytes.count / 8
    for index in 0..<words {
      let word = UInt64(
        littleEndian: bytes.loadUnaligned(fromByteOffset: index &* 8, as: UInt64.self))
      lane = (lane ^ word) &* 0xff51_afd7_ed55_8ccd
      lane ^= lane >> 32
    }
    var tail: UInt64 = 0
    for index in (words * 8)..<bytes.count { tail = (tail << 8) | UInt64(bytes[index]) }
    if bytes.count % 8 != 0 {
      lane = (lane ^ tail) &* 0xc4ce_b9fe_1a85_ec53
      lane ^= lane >> 29
    }
    state = lane
    byteCount &+= UInt64(bytes.count)
  }

  /// Adds a text's UTF-8 bytes.
  public mutating func update(_ text: String) {
    var text = text
    text.withUTF8 { update(UnsafeRawBufferPointer($0)) }
  }

  /// The checksum of everything added so far.
  public var value: UInt64 {
    var mixed = state ^ byteCount
    mixed = (mixed ^ (mixed >> 33)) &* 0xff51_afd7_ed55_8ccd
    return mixed ^ (mixed >> 33)
  }

  /// The checksum of one text.
  public static func of(_ text: String) -> UInt64 {
    var sum = Checksum()
    sum.update(text)
    return sum.value
  }

  /// The checksum as sixteen hexadecimal digits.
  public static func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }
}
