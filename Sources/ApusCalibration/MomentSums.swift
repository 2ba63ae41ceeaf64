// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Sums of the products of the numbers in rows of an operand, by blocks: what second moments are made of.
public struct MomentSums: Sendable {
  /// The blocks.
  public let blocks: MomentBlocks
  /// How many rows were added.
  public private(set) var count = 0
  /// The upper triangles of the blocks, row by row, group by group.
  package private(set) var sums: [Float]
  private let ranges: [Range<Int>]

  /// Nothing added yet.
  public init(_ blocks: MomentBlocks) {
    self.blocks = blocks
    ranges = blocks.ranges
    sums = Array(repeating: 0, count: blocks.momentCount)
  }

  /// Adds a row of `blocks.columnCount` numbers.
  public mutating func add(_ row: UnsafePointer<Float>) {
    let (groups, size) = (blocks.groups, blocks.rowCount)
    sums.withUnsafeMutableBufferPointer { buffer in
      guard var target = buffer.baseAddress else { return }
      for group in 0..<groups {
        for range in ranges {
          let x = row + group * size + range.lowerBound
          for k in range.indices {
            let first = k - range.lowerBound
            let rest = range.count - first
            let factor = x[first]
            // Rectified numbers are zero half of the time.
            if factor != 0 { for j in 0..<rest { target[j] += factor * x[first + j] } }
            target += rest
          }
        }
      }
    }
    count += 1
  }

  /// The mean products.
  public var moments: WeightMoments { WeightMoments(self) }

  /// The state as text, bit by bit.
  public var text: String {
    "\(blocks.text) \(count) " + HexText.encode(sums.lazy.map(\.bitPattern))
  }

  /// Reads the state; nil when it is damaged.
  public init?(parsing text: String) {
    let fields = text.split(separator: " ")
    guard fields.count == 5, let count = Int(fields[3]), (0...1 << 32).contains(count),
      let blocks = MomentBlocks(parsing: fields[0..<3].joined(separator: " ")[...]),
      fields[4].utf8.count == 8 * blocks.momentCount, let bits = HexText.decode(fields[4])
    else { return nil }
    self.init(blocks)
    sums = bits.map { Float(bitPattern: $0) }
    self.count = count
    guard sums.allSatisfy(\.isFinite) else { return nil }
  }
}

/// Words as eight hexadecimal digits each.
private enum HexText {
  static func encode(_ words: some Sequence<UInt32>) -> String {
    var bytes: [UInt8] = []
    for word in words {
      for shift in stride(from: 28, through: 0, by: -4) {
        let digit = UInt8(truncatingIfNeeded: word >> UInt32(shift)) & 15
        bytes.append(digit < 10 ? 48 + digit : 87 + digit)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  static func decode(_ text: Substring) -> [UInt32]? {
    var words: [UInt32] = []
    var (word, digits): (UInt32, Int) = (0, 0)
    for byte in text.utf8 {
      let digit: UInt8
      switch byte {
      case 48...57: digit = byte - 48
      case 97...102: digit = byte - 87
      default: return nil
      }
      word = word << 4 | UInt32(digit)
      digits += 1
      if digits % 8 == 0 { words.append(word) }
    }
    return digits % 8 == 0 ? words : nil
  }
}
