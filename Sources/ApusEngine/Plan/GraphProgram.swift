// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOptimize
import ApusTensor
import Synchronization

/// A graph ready to run with inputs of any shape: plans are made per shape signature and kept.
///
/// Nearly every model becomes one `StaticPlan` once its input shapes are known. Where an operator's
/// result shape depends on data, or a branch or loop must be taken, the program is cut: what can be
/// planned runs, the open operators run on the host, and the rest is a program of its own whose input
/// shapes are known by then.
package final class GraphProgram: Sendable {
  /// The shapes (and shape-deciding elements) that a stage was made for.
  struct Signature: Hashable {
    let types: [ValueType?]
    let values: [Int: [Int64]]
  }

  package let graph: Graph
  package let library: KernelLibrary
  private let decidingInputs: Set<Int>
  /// Whether the members of a batch run one by one.
  package let splitsBatch: Bool
  private let stages = Mutex<[Signature: ProgramStage]>([:])

  /// The number of stages kept; values that change on every run must not fill the memory.
  private static let stageLimit = 256

  /// A program; with `splitsBatch`, members of a batch run one by one where the graph allows it.
  package init(_ graph: Graph, library: KernelLibrary, splitsBatch: Bool = false) {
    self.graph = graph
    self.library = library
    decidingInputs = ShapeDecidingInputs.find(in: graph)
    self.splitsBatch = splitsBatch && decidingInputs.isEmpty && BatchSplit.isPossible(graph)
  }

  /// The stage for these inputs, made when first met.
  package func stage(for inputs: [RuntimeValue?]) throws(ApusError) -> ProgramStage {
    let values = decidingValues(inputs)
    let signature = Signature(
      types: inputs.map { $0?.type }, values: values.mapValues { $0.integers() })
    if let known = stages.withLock({ $0[signature] }) { return known }
    let types = zip(graph.inputs, inputs).map { $1?.type ?? graph[$0].type }
    let stage = try newStage(types, values)
    stages.withLock { known in
      if known.count >= Self.stageLimit { known.removeAll() }
      known[signature] = stage
    }
    return stage
  }

  private func newStage(_ types: [ValueType], _ values: [Int: Tensor]) throws(ApusError) -> ProgramStage {
    if splitsBatch, let batch = BatchSplit.batch(of: types) {
      let one = try Specializer().specialize(
        graph, types: types.map { BatchSplit.resized($0, to: 1) }, values: values)
      let stage = try ProgramStage(one, library: library, repeats: batch)
      if stage.isStatic { return stage }
    }
    return try ProgramStage(
      Specializer().specialize(graph, types: types, values: values), library: library)
  }

  /// Whether elements of input `index` decide shapes or branches.
  package func decidesShapes(_ index: Int) -> Bool { decidingInputs.contains(index) }

  private func decidingValues(_ inputs: [RuntimeValue?]) -> [Int: Tensor] {
    var values: [Int: Tensor] = [:]
    for index in decidingInputs {
      guard index < inputs.count, case .tensor(let tensor)? = inputs[index],
        tensor.dataType.isInteger || tensor.dataType == .bool, tensor.count <= 16
      else { continue }
      values[index] = tensor
    }
    return values
  }
}

/// Finds the inputs whose elements decide shapes or branches.
enum ShapeDecidingInputs {
  static func find(in graph: Graph) -> Set<Int> {
    var wanted: [ValueID] = []
    for id in graph.nodes {
      let node = graph[id]
      if let op = node.op as? any DataDependentShape {
        for index in op.shapeDecidingInputs(count: node.inputs.count)
        where index < node.inputs.count {
          if let input = node.inputs[index] { wanted.append(input) }
        }
      }
      if node.op.name == "If", let condition = node.inputs.first, let condition {
        wanted.append(condition)
      }
    }
    var seen: Set<ValueID> = []
    while let value = wanted.popLast() {
      guard seen.insert(value).inserted, let producer = graph.producer(of: value) else { continue }
      // `Shape` and its kind read no elements.
      guard !(producer.op is any ShapeValueOperator) || producer.op.name != "Shape" else { continue }
      wanted += producer.inputs.compactMap { $0 }
    }
    return Set(graph.inputs.indices.filter { seen.contains(graph.inputs[$0]) })
  }
}
