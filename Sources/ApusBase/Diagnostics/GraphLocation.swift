// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A place in a model: the file, the path of functions and subgraphs, the node and its operator.
///
/// Every part may be unknown; rendering leaves unknown parts out.
public struct GraphLocation: Sendable, Hashable, CustomStringConvertible {
  /// The file as the caller named it.
  public var file: String?
  /// The path of functions and subgraphs from the main graph, for example `If_7.then_branch`.
  public var scope: String?
  /// The node's name in the model.
  public var node: String?
  /// The operator with its domain and version, for example `ai.onnx.Conv-11`.
  public var operatorName: String?

  /// Creates a location.
  public init(
    file: String? = nil, scope: String? = nil, node: String? = nil, operatorName: String? = nil
  ) {
    self.file = file
    self.scope = scope
    self.node = node
    self.operatorName = operatorName
  }

  /// This location with its unknown parts taken from `outer`.
  public func completed(by outer: GraphLocation) -> GraphLocation {
    GraphLocation(
      file: file ?? outer.file, scope: scope ?? outer.scope, node: node ?? outer.node,
      operatorName: operatorName ?? outer.operatorName)
  }

  public var description: String {
    var parts: [String] = []
    if let file { parts.append(file) }
    if let scope { parts.append("in \(scope)") }
    switch (node, operatorName) {
    case (let node?, let name?): parts.append("node '\(node)' (\(name))")
    case (let node?, nil): parts.append("node '\(node)'")
    case (nil, let name?): parts.append("operator \(name)")
    case (nil, nil): break
    }
    return parts.joined(separator: ": ")
  }
}
