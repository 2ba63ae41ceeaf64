// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Which ONNX operators can be imported, and how: rows of (name, first operator-set version, function).
///
/// A node is imported by the newest row that is not newer than the operator set its model imports.
/// Rows are added by statements in the files of `ApusONNX/Ops`, one file a family.
public struct ONNXOperatorTable: Sendable {
  /// Builds the graph's form of one ONNX node and returns its results.
  package typealias Import = @Sendable (NodeImport) throws(ApusError) -> [ValueID]
  /// Creates the one operator that an ONNX node stands for.
  package typealias Make = @Sendable (NodeImport) throws(ApusError) -> any Operator

  /// One way to import one operator.
  package struct Row: Sendable {
    /// The first operator-set version it holds for.
    package var since: Int
    /// What it does.
    package var run: Import
  }

  private var rows: [String: [Row]] = [:]

  /// Creates an empty table.
  public init() {}

  /// The key of an operator: its name, after its domain unless that is the standard one.
  package static func key(_ domain: String, _ name: String) -> String {
    domain.isEmpty || domain == "ai.onnx" ? name : "\(domain).\(name)"
  }

  /// Adds a row whose function builds any number of nodes.
  package mutating func on(
    _ name: String, since: Int, domain: String = "", _ run: @escaping Import
  ) {
    let key = Self.key(domain, name)
    var list = rows[key] ?? []
    list.append(Row(since: since, run: run))
    list.sort { $0.since < $1.since }
    rows[key] = list
  }

  /// Adds a row for an ONNX operator that is one operator over the same operands.
  package mutating func op(
    _ name: String, since: Int, domain: String = "", _ make: @escaping Make
  ) {
    on(name, since: since, domain: domain) { (node) throws(ApusError) in
      try node.result(try make(node), node.inputs)
    }
  }

  /// Adds an operator of one's own: nodes of this name and domain become what `make` returns for their
  /// attributes. An engine that holds such an operator is loaded with a registry that knows it.
  ///
  /// - Parameters:
  ///   - since: The first version of the domain's operator set that it holds for.
  public mutating func register(
    _ name: String, domain: String, since: Int = 1,
    make: @escaping @Sendable (Attributes) throws(ApusError) -> any Operator
  ) {
    op(name, since: since, domain: domain) { (node) throws(ApusError) in
      try make(try node.attributes.all())
    }
  }

  /// Adds an operator of one's own, made from the attributes of its nodes.
  public mutating func register(
    _ type: any Operator.Type, as name: String, domain: String, since: Int = 1
  ) {
    register(name, domain: domain, since: since) { (attributes) throws(ApusError) in
      var reader = AttributeReader(attributes, for: name)
      let result = try type.init(reading: &reader)
      try reader.finish()
      return result
    }
  }

  /// The row for an operator at an operator-set version.
  package func row(_ domain: String, _ name: String, version: Int) -> Row? {
    rows[Self.key(domain, name)]?.last { $0.since <= version }
  }

  /// Whether the operator is known at some version, and since which.
  package func firstVersion(_ domain: String, _ name: String) -> Int? {
    rows[Self.key(domain, name)]?.first?.since
  }

  /// Every operator with the versions at which its import changes, sorted by name.
  public var entries: [(name: String, versions: [Int])] {
    rows.map { (name: $0.key, versions: $0.value.map(\.since)) }.sorted { $0.name < $1.name }
  }
}
