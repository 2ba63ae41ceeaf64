// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// An optimised network, ready to run: immutable, shared by any number of execution contexts.
///
/// An engine is made by a `Builder` or loaded from a file. To run it, make an `ExecutionContext` for
/// each concurrent caller.
public final class Engine: Sendable {
  /// An input or a result.
  public struct Binding: Sendable, Hashable {
    /// The name in the model.
    public let name: String
    /// The type; sizes that may differ from call to call are symbols.
    public let type: ValueType

    /// What a network takes.
    package static func inputs(of network: Graph) -> [Binding] {
      network.inputs.map { Binding(name: network[$0].name, type: network[$0].type) }
    }
  }

  /// The optimised network.
  public let graph: Graph
  /// Whether the reference interpreter runs it.
  public let isReference: Bool
  package let library: KernelLibrary
  package let program: GraphProgram
  /// Whether the members of a batch run one by one, where the network allows it.
  public let splitsBatch: Bool
  /// What the build did and measured; kept in the engine file.
  public let report: BuildReport

  package init(
    graph: Graph, library: KernelLibrary, report: BuildReport, isReference: Bool,
    splitsBatch: Bool = false
  ) {
    self.splitsBatch = splitsBatch
    self.graph = graph
    self.library = library
    self.report = report
    self.isReference = isReference
    program = GraphProgram(graph, library: library, splitsBatch: splitsBatch)
  }

  /// The inputs in order.
  public var inputs: [Binding] {
    graph.inputs.map { Binding(name: graph[$0].name, type: graph[$0].type) }
  }

  /// The results in order.
  public var outputs: [Binding] {
    zip(graph.outputNames, graph.outputs).map { Binding(name: $0, type: graph[$1].type) }
  }

  /// The device the engine runs on.
  public var device: DeviceTraits { library.backend.traits }

  /// Makes a context with a workspace of its own.
  public func makeContext() throws(ApusError) -> ExecutionContext {
    try ExecutionContext(engine: self)
  }
}
