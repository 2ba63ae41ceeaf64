// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOptimize
import ApusTensor

/// Whether the branches of a fork run side by side or one after the other is measured in the finished plan, and kept in
/// the timing cache like the choice of a kernel.
extension Builder {
  private static let (fewestRuns, mostRuns, enoughSeconds) = (3, 30, 0.2)
  /// What running side by side must be faster by.
  private static let gain = 0.03

  /// Chooses for all forks of a network at the tuned sizes; says what came out, if there were any.
  func chooseForks(_ graph: Graph, _ types: [ValueType], _ library: KernelLibrary) throws(ApusError) -> String? {
    let backend = library.backend
    guard configuration.level > 0, backend.laneCount > 1, backend.traits.sharesHostMemory,
      let part = try ProgramStage.plannedPart(of: Specializer().specialize(graph, types: types))
    else { return nil }
    let plan = try StaticPlanner(library: library, forks: .all).plan(part)
    if plan.forks.isEmpty { return nil }
    let cache = try timingCache()
    let device = library.selectionDevice
    let keys = plan.forks.map { $0.key { plan.steps[$0].problem } }
    var entries = keys.map { cache.entry(problem: $0, device: device) }
    for index in entries.indices where entries[index]?.version != Fork.version { entries[index] = nil }
    if entries.contains(nil) {
      let times: [(inTurn: Double, sideBySide: Double)]
      do throws(ApusError) {
        times = try ForkTrial(plan, backend: backend).measure(
          runs: Self.fewestRuns...Self.mostRuns, enoughSeconds: Self.enoughSeconds)
      } catch {
        // A network may not take any numbers; it runs without forks.
        return "forks run their branches in turn, since they could not be measured: \(error.message)"
      }
      for index in entries.indices where entries[index] == nil {
        // Networks repeat forks; equal ones are one choice.
        let equal = keys.indices.filter { keys[$0] == keys[index] }
        let inTurn = equal.reduce(0) { $0 + times[$1].inTurn } / Double(equal.count)
        let sideBySide = equal.reduce(0) { $0 + times[$1].sideBySide } / Double(equal.count)
        let entry = TimingCache.Entry(
          winner: sideBySide < inTurn * (1 - Self.gain) ? Fork.sideBySide : Fork.inTurn, version: Fork.version,
          measurements: [.init(id: Fork.inTurn, seconds: inTurn), .init(id: Fork.sideBySide, seconds: sideBySide)])
        entries[index] = entry
        cache.record(entry, problem: keys[index], device: device)
      }
      if let path = configuration.timingCachePath { try cache.save(path) }
    }
    var count = 0
    for (key, entry) in zip(keys, entries) {
      guard let entry else { continue }
      library.selections.record(
        TimingCache.Entry(winner: entry.winner, version: entry.version, measurements: []), problem: key,
        device: device)
      if entry.winner == Fork.sideBySide { count += 1 }
    }
    return "\(count) of \(keys.count) forks run their branches side by side, a thread each"
  }
}

/// A plan with all its forks on memory of its own, to be timed both ways.
private final class ForkTrial {
  private let plan: StaticPlan
  private let backend: any Backend
  private let instance: PlanInstance
  private let stream: any ExecutionStream
  private let team: BranchTeam
  /// What the instance is bound to.
  private let inputs: [Tensor]
  private let outputs: [Tensor]
  private let arena: DeviceMemory

  init(_ plan: StaticPlan, backend: any Backend) throws(ApusError) {
    self.plan = plan
    self.backend = backend
    stream = try backend.makeStream()
    team = try BranchTeam(backend: backend)
    arena = try backend.allocate(byteCount: max(64, plan.memory.peakByteCount))
    instance = PlanInstance(plan: plan, arena: arena)
    var generator = SeededGenerator(seed: 42)
    var inputs: [Tensor] = []
    for type in plan.inputTypes { inputs.append(try generator.sample(type.dataType, shape: type.shape ?? [])) }
    var outputs: [Tensor] = []
    for type in plan.outputTypes { outputs.append(try Tensor(type.dataType, shape: type.shape ?? [])) }
    (self.inputs, self.outputs) = (inputs, outputs)
    for (index, tensor) in inputs.enumerated() { instance.bindInput(index, to: Self.address(tensor)) }
    for (index, tensor) in outputs.enumerated() { instance.bindOutput(index, to: Self.address(tensor)) }
  }

  private static func address(_ tensor: Tensor) -> DeviceAddress {
    DeviceAddress(bits: UInt64(UInt(bitPattern: tensor.bytes.baseAddress)))
  }

  /// The median seconds of each fork, both ways, run in turn.
  ///
  /// - Throws: `internal` when the results differ.
  func measure(runs: ClosedRange<Int>, enoughSeconds: Double) throws(ApusError) -> [(inTurn: Double, sideBySide: Double)] {
    _ = try run(sideBySide: false)
    let expected = outputs.map { Array($0.bytes) }
    _ = try run(sideBySide: true)
    guard zip(outputs, expected).allSatisfy({ $0.bytes.elementsEqual($1) }) else {
      throw ApusError(.internalError, "branches that run side by side give other results")
    }
    var seconds: [[[Double]]] = [[], []]
    let begin = Clock.seconds
    for count in 0..<runs.upperBound {
      if count >= runs.lowerBound && Clock.seconds - begin > enoughSeconds { break }
      seconds[0].append(try run(sideBySide: false))
      seconds[1].append(try run(sideBySide: true))
    }
    let medians = seconds.map { runs in
      plan.forks.indices.map { fork in runs.map { $0[fork] }.sorted()[runs.count / 2] }
    }
    return Array(zip(medians[0], medians[1])).map { ($0, $1) }
  }

  /// The seconds of each fork in one run.
  private func run(sideBySide: Bool) throws(ApusError) -> [Double] {
    var times = [Double](repeating: 0, count: plan.steps.count + 1)
    try instance.enqueue(on: stream, team: sideBySide ? (team, backend) : nil) { step in times[step] = Clock.seconds }
    try stream.synchronize()
    return plan.forks.map { times[$0.steps.upperBound] - times[$0.steps.lowerBound] }
  }
}
