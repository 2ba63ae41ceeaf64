// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Keeps one of several nodes that apply the same operator to the same operands, and one of several
/// equal small constants.
public struct MergeCommonSubexpressions: Pass {
  public let name = "MergeCommonSubexpressions"
  /// Constants up to this size are compared by content.
  private let comparedBytes = 4096

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    mergeConstants(&graph)
    var known: [String: NodeID] = [:]
    var merged = 0
    for id in try graph.topologicalOrder() {
      let node = graph[id]
      guard !(node.op is any NondeterministicOperator), !(node.op is any ControlFlowOperator),
        let key = Self.key(node)
      else { continue }
      guard let first = known[key], graph[first].outputs.count == node.outputs.count else {
        known[key] = id
        continue
      }
      guard context.claim(name, node.name) else { continue }
      for (old, new) in zip(node.outputs, graph[first].outputs) {
        graph.replaceUses(of: old, with: new)
      }
      graph[first].sources += node.sources.filter { !graph[first].sources.contains($0) }
      graph.remove(id)
      merged += 1
    }
    return merged
  }

  private static func key(_ node: Node) -> String? {
    var text = node.op.name
    for (name, value) in node.op.attributes.entries {
      switch value {
      case .int(let v): text += "|\(name)=\(v)"
      case .float(let v): text += "|\(name)=\(v)"
      case .bool(let v): text += "|\(name)=\(v)"
      case .string(let v): text += "|\(name)=\(v)"
      case .ints(let v): text += "|\(name)=\(v)"
      case .floats(let v): text += "|\(name)=\(v)"
      case .strings(let v): text += "|\(name)=\(v)"
      case .type(let v): text += "|\(name)=\(v)"
      case .expression(let v): text += "|\(name)=\(v)"
      case .valueType(let v): text += "|\(name)=\(v)"
      case .tensor, .graph, .op: return nil
      }
    }
    return text + "(" + node.inputs.map { $0.map { "\($0.index)" } ?? "_" }.joined(separator: ",")
      + ")"
  }

  private func mergeConstants(_ graph: inout Graph) {
    var known: [String: [ValueID]] = [:]
    for id in graph.values {
      guard let tensor = graph[id].constant, graph[id].packing == nil,
        !graph[id].consumers.isEmpty, tensor.byteCount <= comparedBytes,
        tensor.dataType != .string
      else { continue }
      let key = "\(tensor.type)"
      if let same = known[key]?.first(where: { other in
        graph[other].constant.map { $0.bytes.elementsEqual(tensor.bytes) } ?? false
      }) {
        graph.replaceUses(of: id, with: same)
      } else {
        known[key, default: []].append(id)
      }
    }
  }
}
