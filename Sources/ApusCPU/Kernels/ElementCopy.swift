// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Copies what kernels of a product read, as it is or widened.
struct ElementCopy: Sendable {
  /// Whether unsigned bytes become 16-bit elements.
  let widens: Bool

  init(_ kind: ProductKind) { widens = kind.widens }

  /// Copies so many bytes of the source.
  ///
  /// - Returns: How many bytes were written.
  @discardableResult func copy(
    _ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int
  ) -> Int {
    guard widens else {
      target.copyMemory(from: source, byteCount: byteCount)
      return byteCount
    }
    let bytes = source.assumingMemoryBound(to: UInt8.self)
    let elements = target.assumingMemoryBound(to: UInt16.self)
    for index in 0..<byteCount { elements[index] = UInt16(truncatingIfNeeded: bytes[index]) }
    return 2 * byteCount
  }

  /// Fills so many bytes of the target with elements of a value of one byte.
  func fill(_ target: UnsafeMutableRawPointer, byteCount: Int, with value: Int) {
    let byte = UInt8(truncatingIfNeeded: value)
    if widens {
      target.initializeMemory(as: UInt16.self, repeating: UInt16(byte), count: byteCount / 2)
    } else {
      target.initializeMemory(as: UInt8.self, repeating: byte, count: byteCount)
    }
  }
}
