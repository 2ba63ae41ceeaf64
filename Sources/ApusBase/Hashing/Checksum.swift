// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A 64-bit checksum for file sections and cache keys: words of eight bytes go in turn to four lanes of
/// multiply-xorshift mixing, which a processor works on at once. Stable across machines and versions.
/// Not cryptographic.
///
/// Bytes may be added in pieces of any size: only their sequence counts.
public struct Checksum: Sendable {
  private typealias Lanes = (UInt64, UInt64, UInt64, UInt64)

  private var lanes: Lanes = (
    0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63
  )
  private var byteCount: UInt64 = 0
  /// The bytes of a word that is not complete yet, first byte lowest.
  private var pending: UInt64 = 0

  /// Creates the checksum of nothing.
  public init() {}

  /// Adds bytes.
  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    var index = 0
    while byteCount % 32 != 0, index < bytes.count { append(bytes[index], &index) }
    func word(_ offset: Int) -> UInt64 {
      UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }
    var (a, b, c, d) = lanes
    while index + 32 <= bytes.count {
      a = Self.mix(a, word(index))
      b = Self.mix(b, word(index + 8))
      c = Self.mix(c, word(index + 16))
      d = Self.mix(d, word(index + 24))
      index += 32
      byteCount &+= 32
    }
    lanes = (a, b, c, d)
    while index < bytes.count { append(bytes[index], &index) }
  }

  private mutating func append(_ byte: UInt8, _ index: inout Int) {
    pending |= UInt64(byte) << (byteCount % 8 * 8)
    byteCount &+= 1
    index += 1
    guard byteCount % 8 == 0 else { return }
    let lane = byteCount / 8 % 4
    if lane == 1 { lanes.0 = Self.mix(lanes.0, pending) }
    if lane == 2 { lanes.1 = Self.mix(lanes.1, pending) }
    if lane == 3 { lanes.2 = Self.mix(lanes.2, pending) }
    if lane == 0 { lanes.3 = Self.mix(lanes.3, pending) }
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
    var mixed = lanes.0
    for word in [lanes.1, lanes.2, lanes.3, pending, byteCount] { mixed = Self.mix(mixed, word) }
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
