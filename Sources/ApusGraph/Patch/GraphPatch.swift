// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// A rewrite as a value: nodes to add and values to replace, applied in one step that checks types
/// and carries over where things came from.
public struct GraphPatch: Sendable {
  /// A value the patch may use: one of the graph's, or a result of a node of the patch.
  public enum Reference: Hashable, Sendable {
    case existing(ValueID)
    case new(node: Int, output: Int)
    case constant(Int)
  }

  private struct NewNode: Sendable {
    var op: any Operator
    var inputs: [Reference?]
    var outputCount: Int
  }

  /// The rule's stable name, shown in dumps and usable in `APUS_DISABLE_RULES`.
  public let rule: String
  /// The nodes the patch stands for; their names go over to the new nodes and they are removed when
  /// nothing else uses them.
  public let replaced: [NodeID]
  private var nodes: [NewNode] = []
  private var constants: [(name: String, tensor: Tensor)] = []
  private var replacements: [(old: ValueID, new: Reference)] = []

  /// Starts a patch that replaces these nodes.
  public init(rule: String, replacing nodes: [NodeID]) {
    self.rule = rule
    replaced = nodes
  }

  /// Adds a node and returns its first result.
  public mutating func add(_ op: any Operator, _ inputs: [Reference?]) -> Reference {
    nodes.append(NewNode(op: op, inputs: inputs, outputCount: 1))
    return .new(node: nodes.count - 1, output: 0)
  }

  /// Adds a node with several results.
  public mutating func add(_ op: any Operator, _ inputs: [Reference?], outputCount: Int)
    -> [Reference]
  {
    nodes.append(NewNode(op: op, inputs: inputs, outputCount: outputCount))
    return (0..<outputCount).map { .new(node: nodes.count - 1, output: $0) }
  }

  /// Adds a constant.
  public mutating func constant(_ name: String, _ tensor: Tensor) -> Reference {
    constants.append((name, tensor))
    return .constant(constants.count - 1)
  }

  /// Makes every use of `old` a use of `new`.
  public mutating func replace(_ old: ValueID, with new: Reference) {
    replacements.append((old, new))
  }

  /// Applies the patch.
  ///
  /// - Throws: `internal` when a replacement's type contradicts the replaced value's, or whatever
  ///   inference of the new nodes throws; the graph is unchanged then.
  public func apply(to graph: inout Graph) throws(ApusError) {
    var result = graph
    let sources = orderedSources(graph)
    let location = replaced.last.map { graph[$0].location } ?? GraphLocation()
    let name = sources.joined(separator: "+")
    let constantIDs = constants.map { result.addConstant($0.name, $0.tensor) }
    var outputs: [[ValueID]] = []
    func resolve(_ reference: Reference) -> ValueID {
      switch reference {
      case .existing(let id): id
      case .constant(let index): constantIDs[index]
      case .new(let node, let output): outputs[node][output]
      }
    }
    for node in nodes {
      let ids = try result.add(
        node.op, node.inputs.map { $0.map(resolve) }, outputCount: node.outputCount,
        name: nodes.count == 1 ? name : "\(name):\(node.op.name)", location: location,
        sources: sources)
      outputs.append(ids)
    }
    for (old, new) in replacements {
      let target = resolve(new)
      try checkTypes(result[old], result[target])
      if result[target].symbolic == nil { result[target].symbolic = result[old].symbolic }
      result.replaceUses(of: old, with: target)
    }
    for node in replaced.reversed()
    where result[node].outputs.allSatisfy({ result.useCount($0) == 0 }) {
      result.remove(node)
    }
    graph = result
  }

  private func orderedSources(_ graph: Graph) -> [String] {
    var seen: Set<String> = []
    return replaced.flatMap { graph[$0].sources }.filter { seen.insert($0).inserted }
  }

  private func checkTypes(_ old: Value, _ new: Value) throws(ApusError) {
    guard Self.compatible(old.type, new.type) else {
      throw ApusError(
        .internalError,
        "rule '\(rule)' replaces '\(old.name)' of type \(old.type) by a value of type \(new.type)")
    }
  }

  private static func compatible(_ a: ValueType, _ b: ValueType) -> Bool {
    guard case .tensor(let x) = a, case .tensor(let y) = b else { return a == b }
    guard x.dataType == y.dataType else { return false }
    guard let p = x.dims, let q = y.dims else { return true }
    return p.count == q.count
      && zip(p, q).allSatisfy { one, other in
        one.value == nil || other.value == nil || one.value == other.value
      }
  }
}
