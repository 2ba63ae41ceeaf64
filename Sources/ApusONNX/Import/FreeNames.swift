// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusProto

/// The names that a subgraph takes from the graphs around it.
enum FreeNames {
  /// The free names of a graph, in the order of their first use.
  static func of(_ graph: ONNXGraphProto) -> [String] {
    var bound = Set(graph.input.map(\.name))
    for tensor in graph.initializer { bound.insert(tensor.name) }
    for tensor in graph.sparseInitializer { bound.insert(tensor.values.name) }
    for node in graph.node { bound.formUnion(node.output) }
    var names: [String] = []
    var seen: Set<String> = []
    func use(_ name: String) {
      if !name.isEmpty, !bound.contains(name), seen.insert(name).inserted { names.append(name) }
    }
    for node in graph.node { dependencies(of: node).forEach(use) }
    for output in graph.output { use(output.name) }
    return names
  }

  /// What a node reads: its inputs, and what its subgraphs take from outside.
  static func dependencies(of node: ONNXNodeProto) -> [String] {
    var names = node.input.filter { !$0.isEmpty }
    for attribute in node.attribute {
      if attribute.hasG { names += of(attribute.g) }
      for graph in attribute.graphs { names += of(graph) }
    }
    return names
  }
}
