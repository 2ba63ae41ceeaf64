// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Where a buffer lies between two pages that must not be touched.
enum Placement: CaseIterable, Sendable {
  /// It ends where a guard page begins, so reading or writing behind it is a fault.
  case beforeGuard
  /// It begins where a guard page ends, so reading or writing before it is a fault.
  case behindGuard
  /// It begins one element behind a multiple of 64 bytes: engines place what kernels compute at multiples of 64
  /// bytes, but parts of concatenations, and the caller's tensors, at any element.
  case unaligned

  /// What memory holds before a kernel writes it. It differs between placements, so that elements which are never
  /// written cannot equal the reference in all of them.
  var filling: UInt8 {
    switch self {
    case .beforeGuard: 0xFF
    case .behindGuard: 0x3C
    case .unaligned: 0x81
    }
  }
}

/// Memory between two guard pages, part of which is a buffer; the rest holds marks.
final class GuardedRegion {
  private static let page = 4096
  private static let mark: UInt8 = 0xFB

  /// The buffer.
  let bytes: UnsafeMutableRawBufferPointer
  private let mapping: UnsafeMutableRawPointer
  private let pages: UnsafeMutableRawBufferPointer
  private let mappedByteCount: Int

  /// Places a buffer. Its start is a multiple of `alignment`, except that `unaligned` buffers of elements, for which
  /// that is their size, start one element further on.
  init(byteCount: Int, alignment: Int, _ placement: Placement) throws(ApusError) {
    let inner = (byteCount + alignment + Self.page - 1) / Self.page * Self.page
    mappedByteCount = inner + 2 * Self.page
    guard
      let mapping = mmap(
        nil, mappedByteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      mapping != MAP_FAILED
    else { throw ApusError(.resourceLimit, "no memory for \(byteCount) bytes") }
    self.mapping = mapping
    mprotect(mapping, Self.page, PROT_NONE)
    mprotect(mapping + Self.page + inner, Self.page, PROT_NONE)
    pages = UnsafeMutableRawBufferPointer(start: mapping + Self.page, count: inner)
    let start =
      switch placement {
      case .beforeGuard: (inner - byteCount) / alignment * alignment
      case .behindGuard: 0
      case .unaligned: alignment
      }
    bytes = UnsafeMutableRawBufferPointer(rebasing: pages[start..<start + byteCount])
    pages.initializeMemory(as: UInt8.self, repeating: Self.mark)
  }

  deinit { munmap(mapping, mappedByteCount) }

  var address: DeviceAddress {
    DeviceAddress(bits: UInt64(UInt(bitPattern: bytes.baseAddress ?? mapping)))
  }

  /// Overwrites the buffer.
  func fill(_ byte: UInt8) {
    if let start = bytes.baseAddress { memset(start, Int32(byte), bytes.count) }
  }

  /// Whether nothing around the buffer was written.
  var isUntouchedAround: Bool {
    guard let start = bytes.baseAddress, let first = pages.baseAddress else { return true }
    let before = start - first
    return pages[..<before].allSatisfy { $0 == Self.mark }
      && pages[(before + bytes.count)...].allSatisfy { $0 == Self.mark }
  }
}
