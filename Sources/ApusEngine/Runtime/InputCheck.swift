// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Checks what a caller passes against what a graph declares.
enum InputCheck {
  /// The values in the graph's order.
  static func ordered(_ inputs: [String: RuntimeValue], for graph: Graph) throws(ApusError)
    -> [RuntimeValue?]
  {
    for name in inputs.keys.sorted()
    where !graph.inputs.contains(where: { graph[$0].name == name }) {
      throw unknown(name, graph)
    }
    return graph.inputs.map { inputs[graph[$0].name] }
  }

  /// The error for a name that is no input.
  static func unknown(_ name: String, _ graph: Graph) -> ApusError {
    let names = graph.inputs.map { "'\(graph[$0].name)'" }.joined(separator: ", ")
    return ApusError(
      .invalidArgument, "there is no input named '\(name)'", hint: "the inputs are \(names)")
  }

  /// Checks every value, and that sizes with the same symbol agree.
  static func check(_ inputs: [RuntimeValue?], for graph: Graph) throws(ApusError) {
    guard inputs.count == graph.inputs.count else {
      throw ApusError(
        .invalidArgument, "\(inputs.count) inputs are given, the network has \(graph.inputs.count)")
    }
    for (index, value) in inputs.enumerated() { try check(value, index, graph) }
    var sizes: [String: (size: Int, input: String)] = [:]
    for (id, value) in zip(graph.inputs, inputs) {
      guard let tensor = value?.tensor, let dims = graph[id].type.tensor?.dims else { continue }
      for (dim, size) in zip(dims, tensor.shape) {
        guard let symbol = dim.symbolName else { continue }
        if let known = sizes[symbol], known.size != size {
          throw ApusError(
            .invalidArgument,
            "'\(symbol)' is \(known.size) in input '\(known.input)' but \(size) in '\(graph[id].name)'")
        }
        sizes[symbol] = (size, graph[id].name)
      }
    }
  }

  /// Checks one value.
  static func check(_ value: RuntimeValue?, _ index: Int, _ graph: Graph) throws(ApusError) {
    let input = graph[graph.inputs[index]]
    guard let value else {
      if case .optional = input.type { return }
      throw ApusError(
        .invalidArgument, "the input '\(input.name)' is missing", hint: "it is \(input.type)")
    }
    guard case .tensor(let declared) = input.type else { return }
    guard case .tensor(let tensor) = value else {
      throw ApusError(
        .invalidArgument, "the input '\(input.name)' must be a tensor \(declared)")
    }
    guard tensor.dataType == declared.dataType else {
      throw ApusError(
        .invalidArgument,
        "the input '\(input.name)' is \(tensor.dataType), the network wants \(declared)",
        hint: "convert the data to \(declared.dataType)")
    }
    guard let dims = declared.dims else { return }
    let fits =
      dims.count == tensor.shape.count
      && zip(dims, tensor.shape).allSatisfy { $0.value == nil || $0.value == $1 }
    guard fits else {
      throw ApusError(
        .invalidArgument,
        "the input '\(input.name)' has shape \(tensor.shape), the network wants \(declared)")
    }
  }
}
