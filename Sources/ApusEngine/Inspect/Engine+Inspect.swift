// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

extension Engine {
  /// What the engine consists of, as JSON: bindings, every kernel with its source nodes, tactic and
  /// problem, the memory plan, the build report. Sizes are those at the given input shapes.
  ///
  /// - Parameter configuration: Batch and shapes to plan for.
  /// - Throws: `invalid-argument` when the shapes do not fit.
  public func inspect(_ configuration: BuilderConfiguration = BuilderConfiguration())
    throws(ApusError) -> JSON
  {
    let types = try TunedShapes(configuration).types(of: graph)
    var entries: [(String, JSON)] = [
      ("device", .string(device.name)),
      ("isa", .string(device.isa)),
      ("threads", .int(device.threadCount)),
      ("reference", .bool(isReference)),
      ("inputs", .array(zip(inputs, types).map { binding($0, $1) })),
      ("outputs", .array(outputs.map { binding($0, nil) })),
      ("weights_bytes", .int(constantByteCount)),
      (
        "weights_by_type",
        .object(
          constantByteCounts.sorted { "\($0.key)" < "\($1.key)" }.map { ("\($0.key)", .int($0.value)) })
      ),
    ]
    if isReference {
      entries += try referenceEntries(types)
    } else {
      let stage = try sampleStage(configuration)
      let steps = stage.plan?.steps ?? []
      entries += [
        ("kernels_launched", .int(steps.count + stage.hostNodes.count)),
        ("kernels", .array(steps.map { kernel($0) })),
        ("host_nodes", .array(stage.hostNodes.map { .string($0.node.name) })),
        ("planned_later", .bool(stage.rest != nil)),
        ("memory", memory(stage.plan?.memory)),
        ("placement", try placement(configuration).json),
      ]
    }
    entries.append(("build", report.json))
    return .object(entries)
  }

  /// The program's first stage for inputs of the configuration's shapes.
  func sampleStage(_ configuration: BuilderConfiguration) throws(ApusError) -> ProgramStage {
    let types = try TunedShapes(configuration).types(of: graph)
    return try program.stage(for: try types.map { type throws(ApusError) in try sample(type) })
  }

  private func sample(_ type: ValueType) throws(ApusError) -> RuntimeValue? {
    guard case .tensor(let tensor) = type, let shape = tensor.shape else { return nil }
    return .tensor(try Tensor(tensor.dataType, shape: shape))
  }

  private func binding(_ binding: Binding, _ planned: ValueType?) -> JSON {
    var entries: [(String, JSON)] = [
      ("name", .string(binding.name)), ("type", .string(binding.type.description)),
    ]
    if let planned { entries.append(("planned", .string(planned.description))) }
    return .object(entries)
  }

  private func kernel(_ step: StaticPlan.Step) -> JSON {
    let cost = step.problem.cost
    let tuned = report.tuned.first { $0.problem == step.problem.key }
    return .object([
      ("name", .string(step.nodeName)),
      ("operator", .string(step.operatorName)),
      ("sources", .array(step.sources.map { .string($0) })),
      ("tactic", .string(step.tacticID)),
      ("operations", .number(cost.operations)),
      ("bytes", .number(cost.bytes)),
      ("problem", .string(step.problem.key)),
      ("workspace_bytes", .int(step.kernel.workspaceByteCount)),
      ("tuned", tuned?.json ?? .null),
    ])
  }

  private func memory(_ plan: MemoryPlan?) -> JSON {
    .object([
      ("peak_bytes", .int(plan?.peakByteCount ?? 0)),
      ("naive_bytes", .int(plan?.naiveByteCount ?? 0)),
      ("lower_bound_bytes", .int(plan?.lowerBoundByteCount ?? 0)),
    ])
  }

  private func referenceEntries(_ types: [ValueType]) throws(ApusError) -> [(String, JSON)] {
    let sized = try ReferenceSizes.sizes(of: graph, types: types)
    return [
      ("kernels_launched", .int(graph.nodeCount)),
      (
        "memory",
        .object([
          ("peak_bytes", .int(sized)), ("naive_bytes", .int(sized)),
          ("lower_bound_bytes", .int(sized)),
        ])
      ),
    ]
  }

  /// Bytes of all constants.
  public var constantByteCount: Int { constantByteCounts.values.reduce(0, +) }

  /// Bytes of the constants by the type they are stored in: scales of int8 weights count as floats.
  public var constantByteCounts: [DataType: Int] {
    var counts: [DataType: Int] = [:]
    for id in graph.values where !graph[id].consumers.isEmpty || graph.isOutput(id) {
      if let constant = graph[id].constant { counts[constant.dataType, default: 0] += constant.byteCount }
    }
    return counts
  }

  /// The memory plan at the given input shapes; nil when nothing can be planned before data is seen.
  public func memoryPlan(_ configuration: BuilderConfiguration = BuilderConfiguration())
    throws(ApusError) -> MemoryPlan?
  {
    try sampleStage(configuration).plan?.memory
  }
}
