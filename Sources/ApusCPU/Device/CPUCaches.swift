// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import CApusShims

/// The caches of a core in bytes, as the processor describes them (CPUID leaf 4, or 0x8000001D on AMD).
package struct CPUCaches: Hashable, Sendable {
  /// The first-level cache for data.
  package var first = 32 << 10
  /// The second-level cache.
  package var second = 1 << 20

  /// What is common.
  package init() {}

  /// Those of the machine we run on.
  package static let host = detect()

  private static func detect() -> CPUCaches {
    var caches = CPUCaches()
    for leaf in [UInt32(4), 0x8000_001D] where cpuid(leaf & 0x8000_0000, 0)[0] >= leaf {
      for index in UInt32(0)..<8 {
        let words = cpuid(leaf, index)
        let (type, level) = (words[0] & 31, words[0] >> 5 & 7)
        // Sets times ways, partitions and the bytes of a line.
        let bytes =
          (Int(words[2]) + 1) * (Int(words[1] >> 22) + 1) * (Int(words[1] >> 12 & 0x3FF) + 1)
          * (Int(words[1] & 0xFFF) + 1)
        if type == 0 { break }
        if type == 1, level == 1, 8 << 10...1 << 20 ~= bytes { caches.first = bytes }
        if type == 3, level == 2, 128 << 10...64 << 20 ~= bytes { caches.second = bytes }
      }
    }
    return caches
  }

  private static func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> [UInt32] {
    var registers: [UInt32] = [0, 0, 0, 0]
    apus_cpuid(leaf, subleaf, &registers)
    return registers
  }
}
