// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Bytes of untrusted content together with what keeps them alive; every access is checked.
package struct ByteView: Sendable {
  package nonisolated(unsafe) let bytes: UnsafeRawBufferPointer
  package let owner: any AnyObject & Sendable

  /// A view of a mapped file.
  package init(_ file: MappedFile) {
    bytes = file.bytes
    owner = file
  }

  /// A view of a copy of `array` on an aligned address.
  package init(copying array: [UInt8]) throws(ApusError) {
    let memory = try AlignedMemory(byteCount: array.count)
    array.withUnsafeBytes {
      UnsafeMutableRawBufferPointer(start: memory.base, count: array.count).copyMemory(from: $0)
    }
    self.init(memory: memory)
  }

  /// A view of a copy of `source` on an aligned address.
  package init(copying source: UnsafeRawBufferPointer) throws(ApusError) {
    let memory = try AlignedMemory(byteCount: source.count)
    UnsafeMutableRawBufferPointer(start: memory.base, count: source.count).copyMemory(from: source)
    self.init(memory: memory)
  }

  /// A view of memory that has been filled.
  package init(memory: AlignedMemory) {
    bytes = UnsafeRawBufferPointer(start: memory.base, count: memory.byteCount)
    owner = memory
  }

  private init(_ bytes: UnsafeRawBufferPointer, _ owner: any AnyObject & Sendable) {
    self.bytes = bytes
    self.owner = owner
  }

  /// The number of bytes.
  package var count: Int { bytes.count }

  /// `count` bytes from `offset`, or nil when they are not all there.
  package func slice(_ offset: Int, _ count: Int) -> ByteView? {
    guard offset >= 0, count >= 0, offset <= bytes.count, count <= bytes.count - offset else {
      return nil
    }
    return ByteView(UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]), owner)
  }

  /// The little-endian integer at `offset`, or nil past the end.
  package func little<I: FixedWidthInteger>(_ offset: Int, as type: I.Type = I.self) -> I? {
    let width = MemoryLayout<I>.size
    guard offset >= 0, offset <= bytes.count - width else { return nil }
    return I(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: I.self))
  }

  /// The little-endian integer at `offset` as `Int`, or nil past the end or out of range.
  package func size<I: FixedWidthInteger>(_ offset: Int, as type: I.Type) -> Int? {
    little(offset, as: type).flatMap { Int(exactly: $0) }
  }

  /// The bytes as text; damaged UTF-8 is repaired.
  package var text: String { String(decoding: bytes, as: UTF8.self) }
}
