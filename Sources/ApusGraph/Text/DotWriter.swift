// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Renders a graph for Graphviz.
public enum DotWriter {
  /// The graph in the dot language: a box per node, an edge per use, labelled with the type.
  public static func dot(_ graph: Graph) -> String {
    var text = "digraph \(GraphText.quoted(graph.name)) {\n  node [shape=box];\n"
    for id in graph.inputs {
      text += "  v\(id.index) [shape=ellipse, label=\(GraphText.quoted(graph[id].name))];\n"
    }
    for id in graph.nodes {
      let node = graph[id]
      text += "  n\(id.index) [label=\(GraphText.quoted("\(node.op.name)\n\(node.name)"))];\n"
      for input in node.inputs.compactMap({ $0 }) where graph[input].constant == nil {
        let value = graph[input]
        let from = value.producer.map { "n\($0.index)" } ?? "v\(input.index)"
        text += "  \(from) -> n\(id.index) [label=\(GraphText.quoted(value.type.description))];\n"
      }
    }
    for (name, id) in zip(graph.outputNames, graph.outputs) {
      let from = graph[id].producer.map { "n\($0.index)" } ?? "v\(id.index)"
      text += "  \(GraphText.quoted("output " + name)) [shape=ellipse];\n"
      text += "  \(from) -> \(GraphText.quoted("output " + name));\n"
    }
    return text + "}\n"
  }
}
