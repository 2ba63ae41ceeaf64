// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The memory behind tensors: owned bytes, a view into memory that another object keeps alive (a
/// mapped file, a caller's array), or strings.
public final class TensorStorage: @unchecked Sendable {
  /// The first byte; unused for strings.
  public let base: UnsafeMutableRawPointer
  /// The number of bytes.
  public let byteCount: Int
  /// The elements of a string tensor.
  public let strings: [String]
  private let owner: AnyObject?

  /// Allocates zeroed bytes.
  public init(byteCount: Int) throws(ApusError) {
    let memory = try AlignedMemory(byteCount: byteCount)
    base = memory.base
    self.byteCount = byteCount
    strings = []
    owner = memory
  }

  /// A view of memory kept alive by `owner` (nil: by the caller for as long as the view is used).
  public init(viewing bytes: UnsafeRawBufferPointer, owner: AnyObject?) {
    base = UnsafeMutableRawPointer(
      mutating: bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 64)!)
    byteCount = bytes.count
    strings = []
    self.owner = owner
  }

  /// Holds strings.
  public init(strings: [String]) {
    base = UnsafeMutableRawPointer(bitPattern: 64)!
    byteCount = 0
    self.strings = strings
    owner = nil
  }
}
