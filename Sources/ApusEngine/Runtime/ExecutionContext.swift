// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// One caller's state for running an engine: workspace, bound tensors, plans for the shapes seen.
///
/// Not `Sendable`: one context serves one thread at a time. Make several for concurrent callers; they
/// share the engine's constants and kernels.
public final class ExecutionContext {
  /// The engine that runs.
  public let engine: Engine
  private let runner: ProgramRunner
  private var bound: [RuntimeValue?]
  private var prepared: Prepared?

  /// The bound state for the last shapes: running again with them allocates nothing.
  private struct Prepared {
    let stage: ProgramStage
    var inputs: [Tensor]
    var outputs: [Tensor]
  }

  package init(engine: Engine) throws(ApusError) {
    self.engine = engine
    runner = try ProgramRunner(backend: engine.library.backend)
    bound = Array(repeating: nil, count: engine.graph.inputs.count)
  }

  /// Runs the engine on values by name and returns the results by name.
  ///
  /// - Throws: `invalid-argument` for missing, unknown or misshapen inputs; `execution` when an
  ///   operator fails on the data.
  public func run(_ inputs: [String: RuntimeValue]) throws(ApusError) -> [String: RuntimeValue] {
    let operands = try InputCheck.ordered(inputs, for: engine.graph)
    let results = try run(operands)
    var named: [String: RuntimeValue] = [:]
    for (name, value) in zip(engine.graph.outputNames, results) { named[name] = value }
    return named
  }

  /// Runs the engine on tensors by name.
  public func run(_ inputs: [String: Tensor]) throws(ApusError) -> [String: Tensor] {
    let results = try run(inputs.mapValues { RuntimeValue.tensor($0) })
    return results.compactMapValues(\.tensor)
  }

  /// Runs the engine on values in the order of `engine.inputs`; results in the order of
  /// `engine.outputs`, in memory of their own.
  public func run(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try InputCheck.check(inputs, for: engine.graph)
    if engine.isReference {
      return try ReferenceInterpreter.run(engine.graph, inputs: inputs)
    }
    return try runner.run(engine.program, inputs)
  }

  /// Runs the engine without blocking the calling task's thread pool: the work happens on a thread of
  /// its own. The context must not be used until the call returns.
  public func run(async inputs: sending [String: Tensor]) async throws(ApusError) -> [String: Tensor] {
    let work = DetachedWork(context: self, inputs: inputs)
    return try await work.value()
  }

  /// Binds an input for `execute`; its memory is read in place on devices that share memory.
  ///
  /// - Throws: `invalid-argument` for an unknown name or a type that does not fit.
  public func bindInput(_ name: String, _ tensor: Tensor) throws(ApusError) {
    guard let index = engine.graph.inputs.firstIndex(where: { engine.graph[$0].name == name }) else {
      throw InputCheck.unknown(name, engine.graph)
    }
    try InputCheck.check(.tensor(tensor), index, engine.graph)
    // A new address only is patched in; new sizes, or other elements of an input that decides shapes,
    // may need another plan.
    if case .tensor(let old)? = bound[index],
      old.shape != tensor.shape || engine.program.decidesShapes(index)
    {
      prepared = nil
    }
    prepared?.inputs[index] = tensor
    bound[index] = .tensor(tensor)
  }

  /// Runs on the bound inputs into results that stay the context's until the next call. After the
  /// first call with the same bindings nothing is allocated, provided the network's shapes do not
  /// depend on data.
  public func execute() throws(ApusError) {
    if let prepared {
      try runner.run(prepared.stage.plan!, inputs: prepared.inputs, outputs: prepared.outputs)
      return
    }
    try InputCheck.check(bound, for: engine.graph)
    if !engine.isReference {
      let stage = try engine.program.stage(for: bound)
      if stage.isStatic, let plan = stage.plan {
        var outputs: [Tensor] = []
        for type in plan.outputTypes {
          outputs.append(try Tensor(type.dataType, shape: type.shape ?? []))
        }
        let inputs = bound.compactMap { $0?.tensor }
        try runner.run(plan, inputs: inputs, outputs: outputs)
        prepared = Prepared(stage: stage, inputs: inputs, outputs: outputs)
        results = outputs.map { .tensor($0) }
        return
      }
    }
    results = try run(bound)
  }

  /// The results of the last `execute`, in the order of `engine.outputs`.
  public private(set) var results: [RuntimeValue] = []

  /// Bytes of activation memory the context holds.
  public var workspaceByteCount: Int { runner.arenaByteCount }

  var programRunner: ProgramRunner { runner }
}
