// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import Testing

@Suite struct ChecksumTests {
  private func checksum(_ pieces: [[UInt8]]) -> UInt64 {
    var sum = Checksum()
    for piece in pieces { piece.withUnsafeBytes { sum.update($0) } }
    return sum.value
  }

  @Test func doesNotDependOnThePieces() {
    let bytes = (0..<100).map { UInt8(truncatingIfNeeded: $0 &* 37) }
    let whole = checksum([bytes])
    for first in 0..<40 {
      for second in first..<60 {
        let pieces = [bytes[..<first], bytes[first..<second], bytes[second...]].map { Array($0) }
        #expect(checksum(pieces) == whole)
      }
    }
  }

  @Test func seesEveryByteAndTheLength() {
    let bytes = [UInt8](repeating: 0, count: 21)
    var seen: Set<UInt64> = [checksum([bytes])]
    for index in bytes.indices {
      var other = bytes
      other[index] = 1
      seen.insert(checksum([other]))
      seen.insert(checksum([Array(bytes[..<index])]))
    }
    #expect(seen.count == 1 + 2 * bytes.count)
  }
}
