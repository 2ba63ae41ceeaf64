// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Runs programs for one context: owns the stream, the arena and the bound plan instances.
final class ProgramRunner {
  private let backend: any Backend
  private let stream: any ExecutionStream
  private var arena: DeviceMemory
  private var instances: [ObjectIdentifier: PlanInstance] = [:]
  private var memberInstances: [ObjectIdentifier: PlanInstance] = [:]
  /// Device copies of inputs and results, for devices with memory of their own.
  private var staging: [ObjectIdentifier: (inputs: [DeviceMemory], outputs: [DeviceMemory])] = [:]
  /// Called with step number and plan around every launch; see `PlanInstance.enqueue`.
  var observer: ((PlanInstance, Int) throws(ApusError) -> Void)?

  private let checksNumerics = Knobs.checkNumerics.isOn

  init(backend: any Backend) throws(ApusError) {
    self.backend = backend
    stream = try backend.makeStream()
    arena = try backend.allocate(byteCount: 64)
  }

  /// Bytes of arena in use.
  var arenaByteCount: Int { teams.values.reduce(arena.byteCount) { $0 + $1.arenaByteCount } }

  /// The bound instance of a plan; growing the arena rebinds every plan.
  func instance(of plan: StaticPlan) throws(ApusError) -> PlanInstance {
    if plan.memory.peakByteCount > arena.byteCount {
      instances.removeAll()
      memberInstances.removeAll()
      arena = try backend.allocate(byteCount: plan.memory.peakByteCount)
    }
    if let known = instances[ObjectIdentifier(plan)] { return known }
    let instance = PlanInstance(plan: plan, arena: arena)
    instances[ObjectIdentifier(plan)] = instance
    return instance
  }

  /// Runs a static plan into the given result tensors and waits for it.
  func run(_ plan: StaticPlan, inputs: [Tensor], outputs: [Tensor]) throws(ApusError) {
    let instance = try instance(of: plan)
    if backend.traits.sharesHostMemory {
      for index in inputs.indices {
        instance.bindInput(index, to: Self.hostAddress(inputs[index]))
      }
      for index in outputs.indices {
        instance.bindOutput(index, to: Self.hostAddress(outputs[index]))
      }
      try enqueueAll(instance)
      try stream.synchronize()
      return
    }
    let buffers = try stagingBuffers(plan)
    for (index, tensor) in inputs.enumerated() {
      instance.bindInput(index, to: buffers.inputs[index].address)
      if tensor.byteCount > 0 {
        try stream.copyToDevice(
          from: tensor.bytes.baseAddress!, to: buffers.inputs[index].address,
          byteCount: tensor.byteCount)
      }
    }
    for index in outputs.indices {
      instance.bindOutput(index, to: buffers.outputs[index].address)
    }
    try enqueueAll(instance)
    for (index, tensor) in outputs.enumerated() where tensor.byteCount > 0 {
      try stream.copyToHost(
        from: buffers.outputs[index].address, to: tensor.mutableBytes.baseAddress!,
        byteCount: tensor.byteCount)
    }
    try stream.synchronize()
  }

  /// Queues every repetition of a plan whose inputs and results are bound.
  private func enqueueAll(_ instance: PlanInstance) throws(ApusError) {
    let plan = instance.plan
    guard plan.repeats > 1 else { return try enqueue(instance) }
    if observer == nil, !checksNumerics, backend.laneCount > 1 {
      return try team(for: plan).run(like: instance, on: backend)
    }
    let part = part(of: plan)
    for member in 0..<plan.repeats {
      part.bindPart(member, of: instance)
      try enqueue(part)
    }
  }

  /// A second set of bindings on the same arena, for one member of a batch after the other.
  private func part(of plan: StaticPlan) -> PlanInstance {
    if let known = memberInstances[ObjectIdentifier(plan)] { return known }
    let instance = PlanInstance(plan: plan, arena: arena)
    memberInstances[ObjectIdentifier(plan)] = instance
    return instance
  }

  private var branches: BranchTeam?

  private func branchTeam() throws(ApusError) -> BranchTeam {
    if let branches { return branches }
    let team = try BranchTeam(backend: backend)
    branches = team
    return team
  }

  private var teams: [ObjectIdentifier: BatchTeam] = [:]

  private func team(for plan: StaticPlan) throws(ApusError) -> BatchTeam {
    if let known = teams[ObjectIdentifier(plan)] { return known }
    let team = try BatchTeam(plan, backend: backend)
    teams[ObjectIdentifier(plan)] = team
    return team
  }

  private func enqueue(_ instance: PlanInstance) throws(ApusError) {
    if checksNumerics { return try enqueueChecked(instance) }
    guard let observer else {
      let isForked = !instance.plan.forks.isEmpty && backend.laneCount > 1
      try instance.enqueue(on: stream, team: isForked ? (branchTeam(), backend) : nil)
      return
    }
    let stream = stream
    try instance.enqueue(on: stream) { (step) throws(ApusError) in
      try stream.synchronize()
      try observer(instance, step)
    }
  }

  private func enqueueChecked(_ instance: PlanInstance) throws(ApusError) {
    let stream = stream
    var check = NumericsCheck()
    try instance.enqueue(on: stream) { (step) throws(ApusError) in
      try stream.synchronize()
      if step > 0 { try check.inspect(instance, step: step - 1, on: stream) }
    }
  }

  private static func hostAddress(_ tensor: Tensor) -> DeviceAddress {
    DeviceAddress(bits: UInt64(UInt(bitPattern: tensor.bytes.baseAddress!)))
  }

  private func stagingBuffers(_ plan: StaticPlan) throws(ApusError) -> (
    inputs: [DeviceMemory], outputs: [DeviceMemory]
  ) {
    if let known = staging[ObjectIdentifier(plan)] { return known }
    func buffers(_ types: [TensorType]) throws(ApusError) -> [DeviceMemory] {
      var result: [DeviceMemory] = []
      for type in types {
        let bytes = type.dataType.byteCount(of: try Tensor.checkedCount(type.shape ?? [])) ?? 0
        result.append(try backend.allocate(byteCount: max(64, bytes)))
      }
      return result
    }
    let made = (try buffers(plan.inputTypes), try buffers(plan.outputTypes))
    staging[ObjectIdentifier(plan)] = made
    return made
  }

  /// Runs a program on values and returns its results.
  func run(_ program: GraphProgram, _ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let stage = try program.stage(for: inputs)
    let graph = stage.graph
    var frame: [ValueID: RuntimeValue] = [:]
    for (id, value) in zip(graph.inputs, inputs) { frame[id] = value }
    if let plan = stage.plan {
      let operands = try tensors(stage.planInputs, frame, graph)
      var results: [Tensor] = []
      for type in plan.outputTypes {
        results.append(try Tensor(type.dataType, shape: type.shape ?? []))
      }
      try run(plan, inputs: operands, outputs: results)
      for (id, tensor) in zip(stage.planOutputs, results) { frame[id] = .tensor(tensor) }
    }
    for host in stage.hostNodes { try run(host, &frame, graph) }
    if let rest = stage.rest {
      let results = try run(rest, stage.restInputs.map { value($0, frame, graph) })
      for (id, value) in zip(stage.restOutputs, results) { frame[id] = value }
    }
    var outputs: [RuntimeValue] = []
    for (name, id) in zip(graph.outputNames, graph.outputs) {
      guard let value = value(id, frame, graph) else {
        throw ApusError(.internalError, "result '\(name)' was not computed")
      }
      outputs.append(value)
    }
    return outputs
  }

  private func value(_ id: ValueID, _ frame: [ValueID: RuntimeValue], _ graph: Graph)
    -> RuntimeValue?
  {
    frame[id] ?? graph[id].constant.map { .tensor($0) }
  }

  private func tensors(_ ids: [ValueID], _ frame: [ValueID: RuntimeValue], _ graph: Graph)
    throws(ApusError) -> [Tensor]
  {
    var result: [Tensor] = []
    for id in ids {
      guard let tensor = value(id, frame, graph)?.tensor else {
        throw ApusError(.internalError, "'\(graph[id].name)' is not a tensor")
      }
      result.append(tensor)
    }
    return result
  }

  private func run(_ host: ProgramStage.HostNode, _ frame: inout [ValueID: RuntimeValue], _ graph: Graph)
    throws(ApusError)
  {
    let node = host.node
    let operands = node.inputs.map { $0.flatMap { value($0, frame, graph) } }
    let results: [RuntimeValue]
    do {
      if let op = node.op as? any ControlFlowOperator {
        results = try op.execute(operands) { (body, values) throws(ApusError) in
          try self.run(host.bodies[body], values)
        }
      } else {
        results = try node.op.evaluate(operands)
      }
    } catch {
      throw error.at(node.location).at(GraphLocation(node: node.name, operatorName: node.op.name))
    }
    for (output, value) in zip(node.outputs, results) { frame[output] = value }
  }
}
