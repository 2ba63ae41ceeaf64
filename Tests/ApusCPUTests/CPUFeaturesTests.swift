// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import Foundation
import Testing

@Suite struct CPUFeaturesTests {
  @Test func familiesFollowFromFeatures() {
    #expect(CPUFeatures().families == [.portable])
    var features = CPUFeatures()
    features.avx2 = true
    features.fma = true
    #expect(features.best == .portable)
    features.bmi2 = true
    #expect(features.families == [.avx2, .portable])
    features.avxVNNI = true
    #expect(features.families == [.avx2VNNI, .avx2, .portable])
    features.avx512 = true
    #expect(features.best == .avx512 && features.families.count == 4)
    #expect(features.names == ["avx2", "fma", "bmi2", "avx-vnni", "avx512"])
  }

  /// The names are in tactic ids, engine files and `APUS_CPU_ISA`.
  @Test func namesStay() {
    #expect(ISA(rawValue: "avx2-vnni") == .avx2VNNI && ISA(rawValue: "avx2") == .avx2)
    #expect(ISA.avx2VNNI.lanes == 8 && ISA.avx2VNNI.registerCount == 16)
    #expect(ElementAccess.supports(.uint8, .avx2) && !ElementAccess.supports(.uint8, .portable))
    #expect(CPUFeatures.host.families.contains(.current))
  }

  @Test func tilesAreAskedForOnlyWhereTheyExist() {
    #expect(CPUFeatures.host.amxTile || !CPUFeatures.requestTiles)
    #expect(CPUFeatures.host.amxTile || !(CPUFeatures.host.amxInt8 || CPUFeatures.host.amxBF16))
  }

  /// Linux reads the same description of the caches.
  @Test func cachesAreThoseThatTheSystemKnows() throws {
    let folder = "/sys/devices/system/cpu/cpu0/cache/"
    let entries = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    var found: [String: Int] = [:]
    for entry in entries where entry.hasPrefix("index") {
      func read(_ name: String) -> String? {
        (try? String(contentsOfFile: "\(folder)\(entry)/\(name)", encoding: .utf8))?
          .trimmingCharacters(in: .whitespacesAndNewlines)
      }
      guard let level = read("level"), let type = read("type"), let size = read("size"), size.hasSuffix("K"),
        let kilobytes = Int(size.dropLast())
      else { continue }
      found["\(level) \(type)"] = kilobytes << 10
    }
    let caches = CPUCaches.host
    #expect(caches.first == found["1 Data"] ?? caches.first)
    #expect(caches.second == found["2 Unified"] ?? caches.second)
    #expect(caches.first >= 8 << 10 && caches.second >= 128 << 10)
  }
}
