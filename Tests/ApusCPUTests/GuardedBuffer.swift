// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Floats that end where an unreadable page begins: a kernel that reads or writes behind them stops
/// the test with a fault.
final class GuardedBuffer {
  let pointer: UnsafeMutablePointer<Float>
  let count: Int
  private let mapping: UnsafeMutableRawPointer
  private let mappedByteCount: Int

  init(count: Int, fill: (Int) -> Float = { _ in 0 }) {
    let bytes = (count * 4 + 4095) & ~4095
    mappedByteCount = bytes + 4096
    mapping = mmap(
      nil, mappedByteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    mprotect(mapping + bytes, 4096, PROT_NONE)
    pointer = (mapping + (bytes - count * 4)).bindMemory(to: Float.self, capacity: max(1, count))
    self.count = count
    for index in 0..<count { pointer[index] = fill(index) }
  }

  /// Repeatable numbers in -1..<1.
  static func random(_ count: Int, seed: UInt64 = 1) -> GuardedBuffer {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    return GuardedBuffer(count: count) { _ in
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Float(Int32(truncatingIfNeeded: state >> 32)) / 2_147_483_648
    }
  }

  var raw: UnsafeMutableRawPointer { UnsafeMutableRawPointer(pointer) }
  subscript(index: Int) -> Float { pointer[index] }

  deinit { munmap(mapping, mappedByteCount) }
}

/// A tensor's bytes before a page that must not be touched.
final class GuardedTensor {
  let tensor: Tensor
  private let buffer: GuardedBuffer
  private let start: Int

  /// A copy of the tensor that ends where the memory ends.
  init(_ source: Tensor) throws {
    buffer = GuardedBuffer(count: (source.byteCount + 3) / 4 + 1)
    start = buffer.count * 4 - source.byteCount
    let bytes = UnsafeRawBufferPointer(start: buffer.raw + start, count: source.byteCount)
    tensor = try Tensor(
      source.dataType, shape: source.shape, storage: TensorStorage(viewing: bytes, owner: buffer))
    if source.byteCount > 0 {
      raw.copyMemory(from: source.bytes.baseAddress!, byteCount: source.byteCount)
    }
  }

  var raw: UnsafeMutableRawPointer { buffer.raw + start }
}
