// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusProto

/// The order in which nodes are imported: the file's order, except that producers come first.
enum NodeOrder {
  /// - Throws: `invalid-graph` for a value computed twice or nodes that depend on each other in a circle.
  static func of(_ nodes: [ONNXNodeProto]) throws(ApusError) -> [Int] {
    var producers: [String: Int] = [:]
    for (index, node) in nodes.enumerated() {
      for output in node.output where !output.isEmpty {
        guard producers.updateValue(index, forKey: output) == nil else {
          throw ApusError(
            .invalidGraph, "'\(output)' is computed by two nodes",
            hint: "every value of an ONNX graph has one producer; run onnx.checker.check_model",
            location: GraphLocation(node: label(node, index)))
        }
      }
    }
    let needs = nodes.map { FreeNames.dependencies(of: $0).compactMap { producers[$0] } }
    var state = [UInt8](repeating: 0, count: nodes.count)
    var order: [Int] = []
    order.reserveCapacity(nodes.count)
    var stack: [(node: Int, next: Int)] = []
    for start in nodes.indices where state[start] == 0 {
      stack.append((start, 0))
      state[start] = 1
      while let top = stack.last {
        if top.next == needs[top.node].count {
          state[top.node] = 2
          order.append(top.node)
          stack.removeLast()
          continue
        }
        stack[stack.count - 1].next += 1
        let producer = needs[top.node][top.next]
        if state[producer] == 1 {
          throw ApusError(
            .invalidGraph, "the node depends on its own result",
            hint: "the graph has a cycle; ONNX graphs must not",
            location: GraphLocation(node: label(nodes[producer], producer)))
        }
        if state[producer] == 0 {
          state[producer] = 1
          stack.append((producer, 0))
        }
      }
    }
    return order
  }

  /// A node's name, or one made from its operator and place.
  static func label(_ node: ONNXNodeProto, _ index: Int) -> String {
    node.name.isEmpty ? "\(node.opType)_\(index)" : node.name
  }
}
