// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

/// A `StaticPlan` bound to one context's arena, with every launch's arguments laid out in one array.
/// Binding an input or a result only patches addresses, so running allocates nothing.
final class PlanInstance {
  let plan: StaticPlan
  private let arguments: UnsafeMutableBufferPointer<DeviceAddress>
  private let starts: [Int]
  private let inputPatches: [[Patch]]
  private let outputPatches: [[Patch]]
  private var inputAddresses: [DeviceAddress]
  private var outputAddresses: [DeviceAddress]
  private let arena: DeviceMemory

  private struct Patch {
    let argument: Int
    let offset: Int
  }

  init(plan: StaticPlan, arena: DeviceMemory) {
    self.plan = plan
    self.arena = arena
    let count = plan.steps.reduce(0) { $0 + $1.slots.count }
    arguments = .allocate(capacity: max(1, count))
    arguments.initialize(repeating: .none)
    var starts: [Int] = []
    var inputs = [[Patch]](repeating: [], count: plan.inputTypes.count)
    var outputs = [[Patch]](repeating: [], count: plan.outputTypes.count)
    var position = 0
    for step in plan.steps {
      starts.append(position)
      for slot in step.slots {
        switch slot {
        case .arena(let offset): arguments[position] = arena.address + offset
        case .constant(let memory, let offset): arguments[position] = memory.address + offset
        case .input(let index, let offset):
          inputs[index].append(Patch(argument: position, offset: offset))
        case .output(let index, let offset):
          outputs[index].append(Patch(argument: position, offset: offset))
        case .none: break
        }
        position += 1
      }
    }
    self.starts = starts
    inputPatches = inputs
    outputPatches = outputs
    inputAddresses = Array(repeating: .none, count: plan.inputTypes.count)
    outputAddresses = Array(repeating: .none, count: plan.outputTypes.count)
  }

  deinit { arguments.deallocate() }

  /// Makes the launches read input `index` from this address.
  func bindInput(_ index: Int, to address: DeviceAddress) {
    guard inputAddresses[index] != address else { return }
    inputAddresses[index] = address
    for patch in inputPatches[index] { arguments[patch.argument] = address + patch.offset }
  }

  /// Makes the launches write result `index` to this address.
  func bindOutput(_ index: Int, to address: DeviceAddress) {
    guard outputAddresses[index] != address else { return }
    outputAddresses[index] = address
    for patch in outputPatches[index] { arguments[patch.argument] = address + patch.offset }
  }

  /// Binds part `index` of the inputs and results that `whole` is bound to; both have the same plan.
  func bindPart(_ index: Int, of whole: PlanInstance) {
    let parts = plan.partByteCounts
    for input in parts.inputs.indices {
      bindInput(input, to: whole.inputAddresses[input] + index * parts.inputs[input])
    }
    for output in parts.outputs.indices {
      bindOutput(output, to: whole.outputAddresses[output] + index * parts.outputs[output])
    }
  }

  /// Queues every launch; with a team, the branches of forks side by side. `observe` is called before each launch, or
  /// fork, and after the last (nil: no overhead).
  func enqueue(
    on stream: any ExecutionStream, team: (branches: BranchTeam, backend: any Backend)? = nil,
    observe: ((Int) throws(ApusError) -> Void)? = nil
  ) throws(ApusError) {
    var next = 0
    func launch(to end: Int) throws(ApusError) {
      while next < end {
        if let observe { try observe(next) }
        try self.launch(next, on: stream)
        next += 1
      }
    }
    if let team {
      for fork in plan.forks {
        try launch(to: fork.steps.lowerBound)
        if let observe { try observe(next) }
        try stream.synchronize()
        try team.branches.run(fork, of: self, on: team.backend)
        next = fork.steps.upperBound
      }
    }
    try launch(to: plan.steps.count)
    if let observe { try observe(plan.steps.count) }
    for copy in plan.copies {
      try stream.copy(
        from: address(of: copy.source), to: outputAddresses[copy.output], byteCount: copy.byteCount)
    }
  }

  /// Queues one launch.
  func launch(_ index: Int, on stream: any ExecutionStream) throws(ApusError) {
    let step = plan.steps[index]
    do throws(ApusError) {
      try step.kernel.launch(UnsafePointer(arguments.baseAddress!) + starts[index], on: stream)
    } catch {
      throw error.at(GraphLocation(node: step.nodeName, operatorName: step.operatorName))
    }
  }

  /// The device addresses of a step's results, in order.
  func resultAddresses(ofStep index: Int) -> [DeviceAddress] {
    let step = plan.steps[index]
    let first = starts[index] + step.problem.inputs.count
    return step.problem.outputs.indices.map { arguments[first + $0] }
  }

  private func address(of slot: StaticPlan.Slot) -> DeviceAddress {
    switch slot {
    case .arena(let offset): arena.address + offset
    case .constant(let memory, let offset): memory.address + offset
    case .input(let index, let offset): inputAddresses[index] + offset
    case .output(let index, let offset): outputAddresses[index] + offset
    case .none: .none
    }
  }
}
