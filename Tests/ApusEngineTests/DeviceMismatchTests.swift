// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusCPU
import ApusKernel
import ApusTestSupport
import Testing

/// The CPU under another name of its instruction set.
private struct RenamedCPU: Backend {
  let cpu: CPUBackend
  let traits: DeviceTraits
  var tactics: [any Tactic] { cpu.tactics }

  init(isa: String) throws(ApusError) {
    cpu = try CPUBackend.shared(threadCount: 1)
    var traits = cpu.traits
    traits.isa = isa
    self.traits = traits
  }

  func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory { try cpu.allocate(byteCount: byteCount) }
  func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory { try cpu.importConstant(tensor) }
  func makeStream() throws(ApusError) -> any ExecutionStream { try cpu.makeStream() }
}

/// Engines and timings of one instruction set are not taken for another's on the same machine.
@Suite struct DeviceMismatchTests {
  private func temporary(_ name: String) -> String {
    "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).\(name)"
  }

  @Test func enginesOfAnotherInstructionSetAreRefused() throws {
    let path = temporary("plan")
    defer { FileIO.remove(path) }
    let (one, other) = (try RenamedCPU(isa: "one"), try RenamedCPU(isa: "other"))
    try Builder(backend: one).build(try SmallNetworks.residual()).save(path: path)
    _ = try Engine.load(path: path, backend: one)
    let error = #expect(throws: ApusError.self) { _ = try Engine.load(path: path, backend: other) }
    #expect(error?.code == .incompatible)
    #expect(error?.description.contains("(one)") == true && error?.description.contains("(other)") == true)
  }

  @Test func timingsOfAnotherInstructionSetAreNotUsed() throws {
    var configuration = BuilderConfiguration()
    configuration.level = 1
    let path = temporary("cache")
    configuration.timingCachePath = path
    defer { FileIO.remove(path) }
    let (one, other) = (try RenamedCPU(isa: "one"), try RenamedCPU(isa: "other"))
    let graph = try SmallNetworks.residual()
    _ = try Builder(configuration, backend: one).build(graph)
    let foreign = try Builder(configuration, backend: other).build(graph)
    #expect(foreign.report.tuned.allSatisfy { !$0.fromCache })
    // Both keep theirs.
    for backend in [one, other] {
      let again = try Builder(configuration, backend: backend).build(graph)
      #expect(again.report.tuned.allSatisfy { $0.fromCache })
    }
  }
}
