// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Equal bytes at an address that stays: what kernels read where windows reach outside the input.
final class FilledRow: @unchecked Sendable {
  private let memory: UnsafeMutableRawPointer
  var address: Int { Int(bitPattern: memory) }

  init(byteCount: Int, value: Int) {
    memory = .allocate(byteCount: byteCount, alignment: 64)
    memory.initializeMemory(
      as: UInt8.self, repeating: UInt8(truncatingIfNeeded: value), count: byteCount)
  }

  deinit { memory.deallocate() }
}
