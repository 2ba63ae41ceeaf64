// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Defines a network in code, without any model file.
///
/// ```swift
/// var builder = GraphBuilder("classifier")
/// let x = builder.input("x", .float32, [.symbol("N"), 64])
/// let w = builder.constant("w", weights)
/// let y = try builder.apply(MatMul(), [x, w])
/// let graph = try builder.finish(outputs: [("y", y)])
/// ```
public struct GraphBuilder: Sendable {
  /// The network so far.
  public private(set) var graph: Graph

  /// Starts a network.
  public init(_ name: String = "main") { graph = Graph(name: name) }

  /// Adds an input.
  public mutating func input(_ name: String, _ dataType: DataType, _ dims: [Dim]) -> ValueID {
    graph.addInput(name, .tensor(TensorType(dataType, dims)))
  }

  /// Adds a constant.
  public mutating func constant(_ name: String, _ tensor: Tensor) -> ValueID {
    graph.addConstant(name, tensor)
  }

  /// Applies an operator and returns its first result.
  ///
  /// - Throws: `type-mismatch` or `invalid-argument`, naming the node.
  public mutating func apply(_ op: any Operator, _ inputs: [ValueID?], name: String = "")
    throws(ApusError) -> ValueID
  {
    try graph.add(op, inputs, name: name)[0]
  }

  /// Applies an operator with several results.
  public mutating func apply(
    _ op: any Operator, _ inputs: [ValueID?], outputCount: Int, name: String = ""
  ) throws(ApusError) -> [ValueID] {
    try graph.add(op, inputs, outputCount: outputCount, name: name)
  }

  /// Names the results and returns the verified network.
  public mutating func finish(outputs: [(name: String, value: ValueID)]) throws(ApusError) -> Graph {
    for output in outputs { graph.addOutput(output.value, name: output.name) }
    try GraphVerifier.verify(graph)
    return graph
  }
}
