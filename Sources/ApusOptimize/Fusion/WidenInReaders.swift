// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Bytes or BF16 numbers that become single precision for a mean, and for elementwise operators beside it, become
/// so in each reader: what lies in memory between the kernels is a quarter or half in size.
///
/// Dequantising is linear, so the mean is that of the bytes, dequantised; their sums are exact. Squeeze and
/// excitation is where networks do this: a tensor's mean over its places scales its channels.
public struct WidenInReaders: Pass {
  public let name = "WidenInReaders"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      guard let term = widening(id, graph), let readers = readers(of: id, term, graph),
        context.claim(name, graph[id].name)
      else { continue }
      try spread(id, term, readers, &graph)
      count += 1
    }
    return count
  }

  /// Who reads a widened value.
  private enum Reader {
    case mean(Reduce)
    /// A region with the widening inside.
    case pointwise(PointwiseTerm)
  }

  /// What a node computes from narrow numbers, if it is linear and nothing else.
  private func widening(_ id: NodeID, _ graph: Graph) -> PointwiseTerm? {
    guard let term = PointwiseTerm(graph[id], graph), term.operands.count == 1,
      let source = graph[term.operands[0]].type.tensor?.dataType, [.uint8, .int8, .bfloat16].contains(source),
      graph[graph[id].outputs[0]].type.tensor?.dataType == .float32,
      !graph.isOutput(graph[id].outputs[0])
    else { return nil }
    let form = LinearForm(term.expression)
    return form.terms.count == 1 && form.terms[0].atom == .cast(.input(0), .float32) ? term : nil
  }

  /// The readers of node `id`'s result; nil where none is a mean, or one could not widen.
  private func readers(of id: NodeID, _ term: PointwiseTerm, _ graph: Graph)
    -> [(node: NodeID, reader: Reader)]?
  {
    let value = graph[id].outputs[0]
    var readers: [(node: NodeID, reader: Reader)] = []
    var hasMean = false
    for node in Set(graph[value].consumers).sorted(by: { graph[$0].name < graph[$1].name }) {
      if let reduce = graph[node].op as? Reduce, reduce.function == .mean, reduce.sumType == nil,
        graph[node].inputs.count == 1, keepsLastAxis(reduce, value, graph)
      {
        hasMean = true
        readers.append((node, .mean(reduce)))
      } else if let reader = PointwiseTerm(graph[node], graph),
        case let joined = reader.substituting(value, by: term),
        joined.expression.nodeCount <= PointwiseTerm.nodeLimit,
        joined.operands.count <= PointwiseTerm.operandLimit,
        let type = graph[graph[node].outputs[0]].type.tensor?.dataType, PointwiseTerm.isJoinable(type)
      {
        readers.append((node, .pointwise(joined)))
      } else {
        return nil
      }
    }
    return hasMean ? readers : nil
  }

  /// Whether a reduction goes down columns: there are kernels for columns of narrow numbers.
  private func keepsLastAxis(_ reduce: Reduce, _ value: ValueID, _ graph: Graph) -> Bool {
    guard let dims = graph[value].type.tensor?.dims, let channels = dims.last?.value, channels > 1,
      let axes = try? reduce.reducedAxes(nil, rank: dims.count)
    else { return false }
    return !axes.isEmpty && !axes.contains(dims.count - 1)
  }

  private func spread(
    _ id: NodeID, _ term: PointwiseTerm, _ readers: [(node: NodeID, reader: Reader)],
    _ graph: inout Graph
  ) throws(ApusError) {
    for (node, reader) in readers {
      // The last one removes the node that widened for all.
      var patch = GraphPatch(rule: name, replacing: [id, node])
      let result = graph[node].outputs[0]
      switch reader {
      case .mean(var reduce):
        reduce.sumType = .float32
        let mean = patch.add(reduce, [.existing(term.operands[0])])
        // The mean is single precision already.
        let widened = term.expression == .cast(.input(0), .float32)
        patch.replace(
          result,
          with: widened
            ? mean : patch.add(Pointwise(expression: term.expression, resultType: .float32), [mean]))
      case .pointwise(let joined):
        let type = graph[result].type.tensor?.dataType ?? .float32
        patch.replace(
          result,
          with: patch.add(
            Pointwise(expression: joined.expression, resultType: type),
            joined.operands.map { .existing($0) }))
      }
      try patch.apply(to: &graph)
    }
  }
}
