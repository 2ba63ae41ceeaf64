// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
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
}
