// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor
import CApusShims

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// What this process's CPU is.
package enum CPUDescription {
  /// Whether machine code for x86-64 can run here.
  package static var isX86: Bool {
    #if arch(x86_64)
      true
    #else
      false
    #endif
  }

  /// The instruction set family in use: the best that CPU and system offer, or what `APUS_CPU_ISA`
  /// lowers it to.
  package static let isa: ISA = .current

  /// The element types whose products have generated kernels.
  package static var fastTypes: Set<DataType> {
    if isa == .portable { return [.float32] }
    guard isa == .avx512 else { return [.float32, .int8] }
    var types: Set<DataType> = [.float32, .int8, .uint4]
    if CPUFeatures.host.avx512VNNI { types.insert(.uint8) }
    if CPUFeatures.host.avx512BF16 { types.insert(.bfloat16) }
    return types
  }

  /// Cores this process may run on.
  package static let coreCount: Int = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))

  /// The vendor's name for the model.
  package static let name: String = brand()

  /// Model and instruction sets: what generated code and timings depend on.
  package static let fingerprint: String = {
    var leaf = [UInt32](repeating: 0, count: 4)
    apus_cpuid(1, 0, &leaf)
    let signature = String(leaf[0], radix: 16)
    return "\(name.isEmpty ? "cpu" : name)/\(signature)"
  }()

  private static func brand() -> String {
    var bytes: [UInt8] = []
    var registers = [UInt32](repeating: 0, count: 4)
    apus_cpuid(0x8000_0000, 0, &registers)
    guard registers[0] >= 0x8000_0004 else { return isX86 ? "x86-64" : "cpu" }
    for leaf in UInt32(0x8000_0002)...0x8000_0004 {
      apus_cpuid(leaf, 0, &registers)
      for register in registers {
        for shift in stride(from: UInt32(0), to: 32, by: 8) {
          bytes.append(UInt8(truncatingIfNeeded: register >> shift))
        }
      }
    }
    let text = bytes.prefix { $0 != 0 }.filter { $0 >= 32 && $0 < 127 }
    return String(decoding: text, as: UTF8.self).split(separator: " ").joined(separator: " ")
  }
}
