// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A 64-bit checksum for file sections and cache keys: eight bytes at a time through
/// multiply-xorshift mixing, stable across machines and versions. Not cryptographic.
///
/// Bytes may be added in pieces of any size: only their sequence counts.
public struct Checksum: Sendable {
  private var state: UInt64 = 0x9e37_79b9_7f4a_7c15
  private var byteCount: UInt64 = 0
  /// The bytes of a word that is not complete yet, first byte lowest.
  private var pending: UInt64 = 0

  /// Creates the checksum of nothing.
  public init() {}

  /// Adds bytes.
  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    var index = 0
    while byteCount % 8 != 0, index < bytes.count { append(bytes[index], &index) }
    var lane = state
    let words = (bytes.count - index) / 8
    for word in 0..<words {
      let value = bytes.loadUnaligned(fromByteOffset: index &+ word &* 8, as: UInt64.self)
      lane = Self.mix(lane, UInt64(littleEndian: value))
    }
    state = lane
    byteCount &+= UInt64(words * 8)
    index += words * 8
    while index < bytes.count { append(bytes[index], &index) }
  }

  private mutating func append(_ byte: UInt8, _ index: inout Int) {
    pending |= UInt64(byte) << (byteCount % 8 * 8)
    byteCount &+= 1
    index += 1
    guard byteCount % 8 == 0 else { return }
    state = Self.mix(state, pending)
    pending = 0
  }

  private static func mix(_ lane: UInt64, _ word: UInt64) -> UInt64 {
    let mixed = (lane ^ word) &* 0xff51_afd7_ed55_8ccd
    return mixed ^ (mixed >> 32)
  }

  /// Adds a text's UTF-8 bytes.
  public mutating func update(_ text: String) {
    var text = text
    text.withUTF8 { update(UnsafeRawBufferPointer($0)) }
  }

  /// The checksum of everything added so far.
  public var value: UInt64 {
    var mixed = byteCount % 8 == 0 ? state : Self.mix(state, pending)
    mixed ^= byteCount
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
