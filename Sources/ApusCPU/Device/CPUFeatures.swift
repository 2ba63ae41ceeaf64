// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86
import CApusShims

/// The instruction set families that kernels are generated for.
package enum ISA: String, Hashable, Sendable {
  /// 512-bit vectors with masks: AVX-512 F, VL, BW and DQ.
  case avx512
  /// The next with products of bytes (AVX-VNNI): CPUs of today without 512-bit vectors.
  case avx2VNNI = "avx2-vnni"
  /// 256-bit vectors with fused multiply-add and BMI2.
  case avx2
  /// No generated code.
  case portable

  /// The widest vectors of the family.
  package var width: VectorWidth { self == .avx512 ? .zmm : .ymm }
  /// Single-precision lanes in one vector.
  package var lanes: Int { width.lanes }
  /// Vector registers.
  package var registerCount: Int { self == .avx512 ? 32 : 16 }

  /// The family in use: the best the machine has, or what `APUS_CPU_ISA` asks for if the machine has
  /// it.
  package static let current: ISA = {
    let host = CPUFeatures.host
    if let wanted = ISA(rawValue: Knobs.cpuISA.text), host.families.contains(wanted) { return wanted }
    return host.best
  }()
}

/// What the processor and the operating system support.
package struct CPUFeatures: Hashable, Sendable {
  package var avx2 = false
  package var fma = false
  package var bmi2 = false
  package var f16c = false
  package var avxVNNI = false
  package var avx512 = false
  package var avx512VNNI = false
  package var avx512BF16 = false
  package var avx512VBMI = false
  /// Tiles (AMX), which a process must ask for with `requestTiles` before it uses them.
  package var amxTile = false
  package var amxInt8 = false
  package var amxBF16 = false
  /// The model as the processor names itself.
  package var name = ""

  /// Nothing.
  package init() {}

  /// The families this machine can run, the best one first.
  package var families: [ISA] {
    let hasAVX2 = avx2 && fma && bmi2
    return (avx512 ? [.avx512] : []) + (hasAVX2 && avxVNNI ? [.avx2VNNI] : [])
      + (hasAVX2 ? [.avx2] : []) + [.portable]
  }

  /// The best family this machine can run.
  package var best: ISA { families.first ?? .portable }

  /// The names of what is there, for people.
  package var names: [String] {
    let all: [(String, Bool)] = [
      ("avx2", avx2), ("fma", fma), ("bmi2", bmi2), ("f16c", f16c), ("avx-vnni", avxVNNI),
      ("avx512", avx512), ("avx512-vnni", avx512VNNI), ("avx512-bf16", avx512BF16),
      ("avx512-vbmi", avx512VBMI), ("amx-tile", amxTile), ("amx-int8", amxInt8),
      ("amx-bf16", amxBF16),
    ]
    return all.filter(\.1).map(\.0)
  }

  /// Asks the system for the registers of AMX; only then may the process use them. Asked once, and only
  /// where they exist.
  package static let requestTiles: Bool = host.amxTile && apus_request_tiles() != 0

  /// The machine we run on.
  package static let host = CPUFeatures.detect()

  private static func cpuid(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
    var registers: [UInt32] = [0, 0, 0, 0]
    apus_cpuid(leaf, subleaf, &registers)
    return registers
  }

  private static func detect() -> CPUFeatures {
    var features = CPUFeatures()
    let limit = cpuid(0)[0]
    guard limit >= 7 else { return features }
    let basic = cpuid(1)[2]
    let extended = cpuid(7)
    let more = cpuid(7, 1)
    let saved = apus_xgetbv0()
    // The system must save the registers: XMM and YMM, for AVX-512 also masks and both ZMM halves.
    let ymmSaved = saved & 0x6 == 0x6
    let zmmSaved = saved & 0xE6 == 0xE6
    // Tiles and their configuration.
    let tilesSaved = saved & 0x6_0000 == 0x6_0000
    func bit(_ word: UInt32, _ index: UInt32) -> Bool { word >> index & 1 == 1 }
    let avx = ymmSaved && bit(basic, 28)
    features.fma = avx && bit(basic, 12)
    features.f16c = avx && bit(basic, 29)
    features.avx2 = avx && bit(extended[1], 5)
    features.bmi2 = bit(extended[1], 8)
    let parts = [16, 17, 30, 31].allSatisfy { bit(extended[1], $0) }  // F, DQ, BW, VL
    features.avx512 = zmmSaved && features.avx2 && features.fma && features.bmi2 && parts
    features.avx512VNNI = features.avx512 && bit(extended[2], 11)
    features.avx512VBMI = features.avx512 && bit(extended[2], 1)
    features.avxVNNI = features.avx2 && extended[0] >= 1 && bit(more[0], 4)
    features.amxTile = tilesSaved && bit(extended[3], 24)
    features.amxInt8 = features.amxTile && bit(extended[3], 25)
    features.amxBF16 = features.amxTile && bit(extended[3], 22)
    features.avx512BF16 = features.avx512 && extended[0] >= 1 && bit(more[0], 5)
    features.name = brand()
    return features
  }

  private static func brand() -> String {
    guard cpuid(0x8000_0000)[0] >= 0x8000_0004 else { return "" }
    var bytes: [UInt8] = []
    for leaf in UInt32(0x8000_0002)...0x8000_0004 {
      for word in cpuid(leaf) {
        for shift in stride(from: UInt32(0), to: 32, by: 8) {
          bytes.append(UInt8(truncatingIfNeeded: word >> shift))
        }
      }
    }
    let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    return text.split(separator: " ").joined(separator: " ")
  }
}
