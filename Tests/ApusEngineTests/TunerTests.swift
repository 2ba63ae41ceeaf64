// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import Synchronization
import Testing

/// What a machine that is busy with something else makes of measurements must not choose a kernel.
@Suite struct TunerTests {
  @Test func oneSlowRunRulesNoCandidateOut() throws {
    let all = LaunchCount()
    let winner = try winner([
      ScriptedTactic("test.steady", all, estimate: 1) { _ in 1e-3 },
      // The first launch is compared, the second one warms up.
      ScriptedTactic("test.unlucky", all, estimate: 2) { launches in launches.own == 3 ? 0.03 : 2e-4 },
    ])
    #expect(winner.hasPrefix("test.unlucky"))
  }

  @Test func candidatesThatCameCloseAreMeasuredInTurns() throws {
    let all = LaunchCount()
    let winner = try winner([
      // A moment's luck, which is over when the other one has its turn.
      ScriptedTactic("test.lucky", all, estimate: 1) { launches in launches.others == 0 ? 1e-3 : 4e-3 },
      ScriptedTactic("test.steady", all, estimate: 2) { _ in 1.1e-3 },
    ])
    #expect(winner.hasPrefix("test.steady"))
  }

  private func winner(_ tactics: [ScriptedTactic]) throws -> String {
    var b = GraphBuilder("rectifier")
    let x = b.input("x", .float32, [1, 64])
    let graph = try b.finish(outputs: [("y", try b.apply(Relu(), [x]))])
    let backend = ScriptedBackend(host: try .shared(threadCount: 1), tactics: tactics)
    let engine = try Builder(BuilderConfiguration(), backend: backend).build(graph)
    return try #require(engine.report.tuned.first).winner
  }
}

/// The host's memory with other tactics.
private struct ScriptedBackend: Backend {
  let host: CPUBackend
  let tactics: [any Tactic]
  let traits: DeviceTraits

  init(host: CPUBackend, tactics: [ScriptedTactic]) {
    self.host = host
    self.tactics = tactics
    traits = DeviceTraits(
      kind: "scripted", name: "scripted device", fingerprint: "scripted/1", isa: "none", threadCount: 1,
      sharesHostMemory: true)
  }

  func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory { try host.allocate(byteCount: byteCount) }
  func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory { try host.importConstant(tensor) }
  func makeStream() throws(ApusError) -> any ExecutionStream { try host.makeStream() }
}

/// A rectifier whose launches take as long as a script says.
private struct ScriptedTactic: Tactic {
  let name: String
  let source = "native"
  let estimate: Double
  let kernel: ScriptedKernel

  /// How often a kernel was launched, this launch included, and how often all others were.
  typealias Launches = (own: Int, others: Int)

  init(
    _ name: String, _ total: LaunchCount, estimate: Double, seconds: @escaping @Sendable (Launches) -> Double
  ) {
    self.name = name
    self.estimate = estimate
    kernel = ScriptedKernel(total, seconds: seconds)
  }

  func support(_ problem: Problem) -> Support { .yes }
  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double { estimate }
  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError) -> any Kernel {
    kernel.count = problem.outputs[0].count
    return kernel
  }
}

private final class LaunchCount: Sendable {
  private let count = Mutex(0)

  func next() -> Int {
    count.withLock { count in
      count += 1
      return count
    }
  }
}

private final class ScriptedKernel: Kernel {
  let workspaceByteCount = 0
  private let seconds: @Sendable (ScriptedTactic.Launches) -> Double
  private let state = Mutex((count: 0, own: 0))
  /// The kernels of one test count together.
  let total: LaunchCount

  init(_ total: LaunchCount, seconds: @escaping @Sendable (ScriptedTactic.Launches) -> Double) {
    self.total = total
    self.seconds = seconds
  }

  var count: Int {
    get { state.withLock { $0.count } }
    set { state.withLock { $0.count = newValue } }
  }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream) throws(ApusError) {
    let total = total.next()
    let (count, own) = state.withLock { state in
      state.own += 1
      return (state.count, state.own)
    }
    let end = Clock.seconds + seconds((own, total - own))
    guard let x = UnsafePointer<Float>(bitPattern: UInt(arguments[0].bits)),
      let y = UnsafeMutablePointer<Float>(bitPattern: UInt(arguments[1].bits))
    else { throw ApusError(.execution, "no operands") }
    for index in 0..<count { y[index] = max(x[index], 0) }
    while Clock.seconds < end {}
  }
}
