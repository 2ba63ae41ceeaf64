// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Decompression of the DEFLATE format (RFC 1951) into a buffer of known size. Every read and write
/// is checked: damaged input gives an error, never an access outside the buffers.
struct Inflate {
  private let input: UnsafeRawBufferPointer
  private let output: UnsafeMutableRawBufferPointer
  private var position = 0
  private var bits: UInt64 = 0
  private var bitCount = 0
  private var written = 0

  /// Decompresses all of `input` to exactly fill `output`.
  static func run(_ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer)
    throws(ApusError)
  {
    var state = Inflate(input: input, output: output)
    try state.run()
  }

  private init(input: UnsafeRawBufferPointer, output: UnsafeMutableRawBufferPointer) {
    self.input = input
    self.output = output
  }

  private static func damaged(_ what: String) -> ApusError {
    ApusError(.malformedFile, "the compressed data is damaged: \(what)")
  }

  private mutating func run() throws(ApusError) {
    var isLast = false
    while !isLast {
      isLast = try take(1) == 1
      switch try take(2) {
      case 0: try stored()
      case 1: try compressed(Self.fixedLiterals, Self.fixedDistances)
      case 2:
        let (literals, distances) = try dynamicCodes()
        try compressed(literals, distances)
      default: throw Self.damaged("unknown block type")
      }
    }
    guard written == output.count else {
      throw Self.damaged("\(written) bytes come out, \(output.count) are announced")
    }
  }

  // MARK: Bits

  private mutating func refill() {
    while bitCount <= 56, position < input.count {
      bits |= UInt64(input[position]) << UInt64(bitCount)
      position += 1
      bitCount += 8
    }
  }

  private mutating func take(_ count: Int) throws(ApusError) -> Int {
    if bitCount < count { refill() }
    guard bitCount >= count else { throw Self.damaged("it ends early") }
    let value = Int(bits & ((1 << UInt64(count)) - 1))
    bits >>= UInt64(count)
    bitCount -= count
    return value
  }

  private mutating func symbol(_ code: HuffmanCode) throws(ApusError) -> Int {
    if bitCount < 15 { refill() }
    guard let (symbol, length) = code.decode(bits), length <= bitCount else {
      throw Self.damaged("a code that does not exist, or an early end")
    }
    bits >>= UInt64(length)
    bitCount -= length
    return symbol
  }

  // MARK: Blocks

  private mutating func stored() throws(ApusError) {
    _ = try take(bitCount % 8)
    let length = try take(16)
    guard try take(16) == length ^ 0xffff else { throw Self.damaged("a stored block's length") }
    guard length <= output.count - written else {
      throw Self.damaged("it is longer than announced")
    }
    for _ in 0..<length {
      output[written] = UInt8(try take(8))
      written += 1
    }
  }

  private mutating func compressed(_ literals: HuffmanCode, _ distances: HuffmanCode)
    throws(ApusError)
  {
    while true {
      let symbol = try symbol(literals)
      if symbol < 256 {
        guard written < output.count else { throw Self.damaged("it is longer than announced") }
        output[written] = UInt8(symbol)
        written += 1
        continue
      }
      if symbol == 256 { return }
      guard symbol <= 285 else { throw Self.damaged("a length code") }
      let length = Self.lengthBase[symbol - 257] + (try take(Self.lengthExtra[symbol - 257]))
      let code = try self.symbol(distances)
      guard code < 30 else { throw Self.damaged("a distance code") }
      let distance = Self.distanceBase[code] + (try take(Self.distanceExtra[code]))
      guard distance <= written else { throw Self.damaged("a reference before the start") }
      guard length <= output.count - written else {
        throw Self.damaged("it is longer than announced")
      }
      for _ in 0..<length {
        output[written] = output[written - distance]
        written += 1
      }
    }
  }

  private mutating func dynamicCodes() throws(ApusError) -> (HuffmanCode, HuffmanCode) {
    let literalCount = try take(5) + 257
    let distanceCount = try take(5) + 1
    let lengthCount = try take(4) + 4
    var lengths = [UInt8](repeating: 0, count: 19)
    for index in 0..<lengthCount { lengths[Self.order[index]] = UInt8(try take(3)) }
    guard let code = HuffmanCode(lengths) else { throw Self.damaged("the code lengths") }
    var all: [UInt8] = []
    let total = literalCount + distanceCount
    while all.count < total {
      let symbol = try symbol(code)
      var value: UInt8 = 0
      var times = 1
      switch symbol {
      case 0...15: value = UInt8(symbol)
      case 16:
        guard let last = all.last else { throw Self.damaged("a repetition of nothing") }
        value = last
        times = try take(2) + 3
      case 17: times = try take(3) + 3
      default: times = try take(7) + 11
      }
      guard times <= total - all.count else { throw Self.damaged("too many code lengths") }
      for _ in 0..<times { all.append(value) }
    }
    guard let literals = HuffmanCode(Array(all[..<literalCount])),
      let distances = HuffmanCode(Array(all[literalCount...]))
    else { throw Self.damaged("the codes") }
    return (literals, distances)
  }

  // MARK: Tables

  private static let order = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
  ]
  private static let lengthBase = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
  ]
  private static let lengthExtra = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
  ]
  private static let distanceBase = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049,
    3073, 4097, 6145, 8193, 12289, 16385, 24577,
  ]
  private static let distanceExtra = [
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13,
    13,
  ]
  private static let fixedLiterals: HuffmanCode = {
    var lengths = [UInt8](repeating: 8, count: 288)
    for index in 144..<256 { lengths[index] = 9 }
    for index in 256..<280 { lengths[index] = 7 }
    return HuffmanCode(lengths) ?? HuffmanCode.empty
  }()
  private static let fixedDistances =
    HuffmanCode([UInt8](repeating: 5, count: 30)) ?? HuffmanCode.empty
}

/// A canonical prefix code: short codes by table, long ones by counting.
struct HuffmanCode: Sendable {
  private static let tableBits = 10
  private var table: [UInt16]
  private var counts: [Int]
  private var symbols: [UInt16]

  static let empty = HuffmanCode()

  private init() {
    table = Array(repeating: 0, count: 1 << Self.tableBits)
    counts = Array(repeating: 0, count: 16)
    symbols = []
  }

  /// Builds the code from its symbols' code lengths; nil when more codes are asked for than exist.
  init?(_ lengths: [UInt8]) {
    self.init()
    for length in lengths { counts[Int(length)] += 1 }
    counts[0] = 0
    var room = 1
    var starts = [Int](repeating: 0, count: 16)
    var codes = [Int](repeating: 0, count: 16)
    for length in 1..<16 {
      room = room * 2 - counts[length]
      guard room >= 0 else { return nil }
      if length < 15 {
        starts[length + 1] = starts[length] + counts[length]
        codes[length + 1] = (codes[length] + counts[length]) << 1
      }
    }
    symbols = Array(repeating: 0, count: lengths.count)
    for (symbol, length) in lengths.enumerated() where length > 0 {
      let length = Int(length)
      symbols[starts[length]] = UInt16(symbol)
      starts[length] += 1
      let code = codes[length]
      codes[length] += 1
      guard length <= Self.tableBits else { continue }
      var slot = Self.reversed(code, length)
      while slot < table.count {
        table[slot] = UInt16(symbol) << 4 | UInt16(length)
        slot += 1 << length
      }
    }
  }

  private static func reversed(_ code: Int, _ length: Int) -> Int {
    var result = 0
    for bit in 0..<length where code >> bit & 1 == 1 { result |= 1 << (length - 1 - bit) }
    return result
  }

  /// The symbol at the low end of `bits` and its code's length.
  func decode(_ bits: UInt64) -> (symbol: Int, length: Int)? {
    let entry = table[Int(bits & UInt64(table.count - 1))]
    if entry != 0 { return (Int(entry >> 4), Int(entry & 15)) }
    var code = 0
    var first = 0
    var index = 0
    for length in 1..<16 {
      code |= Int(bits >> UInt64(length - 1) & 1)
      let count = counts[length]
      if code - first < count { return (Int(symbols[index + code - first]), length) }
      index += count
      first = (first + count) << 1
      code <<= 1
    }
    return nil
  }
}
