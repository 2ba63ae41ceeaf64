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
    var mapping: UnsafeMutableRawBufferPointer?
    let padded = max(64, (byteCount + 63) & ~63)
    // Large blocks come straight from the system: zero already, and touched only when used.
    if padded >= 1 << 20 {
      (mapping, pointer) = Self.map(padded)
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
    self.mapping = mapping
  }

  /// What to give back to the system, where the memory came straight from it.
  private let mapping: UnsafeMutableRawBufferPointer?

  deinit {
    if let mapping { munmap(mapping.baseAddress!, mapping.count) } else { free(base) }
  }

  private static let hugePage = 2 << 20

  /// Zeros from the system. Many kernels walk several rows at once, each on pages of its own; large pages
  /// spare them most of the misses in the address translation, which are dear on virtual machines.
  private static func map(_ byteCount: Int) -> (UnsafeMutableRawBufferPointer?, UnsafeMutableRawPointer?) {
    let isLarge = byteCount >= 2 * hugePage
    let total = isLarge ? byteCount + hugePage : byteCount
    guard let start = mmap(nil, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      start != MAP_FAILED
    else { return (nil, nil) }
    let mapping = UnsafeMutableRawBufferPointer(start: start, count: total)
    guard isLarge else { return (mapping, start) }
    let base = start.alignedUp(toMultipleOf: hugePage)
    #if os(Linux)
      madvise(base, byteCount, MADV_HUGEPAGE)
    #endif
    return (mapping, base)
  }
}
