// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Owned, zero-filled memory on a 64-byte boundary.
public final class AlignedMemory: @unchecked Sendable {
  /// The first byte.
  public let base: UnsafeMutableRawPointer
  /// The number of usable bytes.
  public let byteCount: Int

  /// The largest request that is served; larger ones come from damaged or hostile sizes.
  public static let limit = 1 << 40

  /// Allocates memory.
  ///
  /// - Throws: `resource-limit` when the size is negative, absurd or not available.
  public init(byteCount: Int) throws(ApusError) {
    guard byteCount >= 0, byteCount <= Self.limit else {
      throw ApusError(.resourceLimit, "cannot allocate \(byteCount) bytes")
    }
    var pointer: UnsafeMutableRawPointer?
    let padded = max(64, (byteCount + 63) & ~63)
    // Large blocks come straight from the system: zero already, and touched only when used.
    if padded >= 1 << 20 {
      let mapping = mmap(
        nil, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      pointer = mapping == MAP_FAILED ? nil : mapping
    } else if posix_memalign(&pointer, 64, padded) == 0, let pointer {
      memset(pointer, 0, padded)
    }
    guard let pointer else {
      throw ApusError(
        .resourceLimit, "cannot allocate \(byteCount) bytes",
        hint: "the machine has too little free memory for this shape")
    }
    base = pointer
    self.byteCount = byteCount
    mappedByteCount = padded >= 1 << 20 ? padded : 0
  }

  private let mappedByteCount: Int

  deinit {
    if mappedByteCount > 0 { munmap(base, mappedByteCount) } else { free(base) }
  }
}
