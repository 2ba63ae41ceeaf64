// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusProto

/// The name of an operator with domain and version, as messages show it.
enum OperatorLabel {
  static func of(_ node: ONNXNodeProto, _ version: Int?) -> String {
    let domain = node.domain.isEmpty ? "ai.onnx" : node.domain
    return "\(domain).\(node.opType)" + (version.map { "-\($0)" } ?? "")
  }
}

/// Finds every operator of a model that cannot be imported, before anything is imported.
struct OperatorSupport {
  private struct Missing {
    var count = 0
    var nodes: [String] = []
    /// The first version that is known, for an operator that is known at all.
    var since: Int?
  }

  private let session: ImportSession
  private var missing: [String: Missing] = [:]
  private var known: Set<String> = []

  /// - Throws: `unsupported-operator`, one error that lists all of them with counts and nodes.
  static func check(_ session: ImportSession) throws(ApusError) {
    var support = OperatorSupport(session: session)
    let model = session.file.model
    let versions = ImportSession.versions(model.opsetImport)
    support.visit(model.graph, versions, path: "")
    try support.report()
  }

  private init(session: ImportSession) { self.session = session }

  private mutating func visit(_ graph: ONNXGraphProto, _ versions: [String: Int], path: String) {
    visit(graph.node, versions, path: path)
  }

  private mutating func visit(_ nodes: [ONNXNodeProto], _ versions: [String: Int], path: String) {
    for (index, node) in nodes.enumerated() {
      let label = path + NodeOrder.label(node, index)
      for attribute in node.attribute {
        if attribute.hasG { visit(attribute.g, versions, path: "\(label).\(attribute.name)/") }
        for graph in attribute.graphs {
          visit(graph, versions, path: "\(label).\(attribute.name)/")
        }
      }
      if let function = session.function(for: node) {
        let key = ImportSession.functionKey(function.domain, function.name, function.overload)
        // Each function once; recursion is reported when it is inlined.
        if known.insert(key).inserted {
          visit(
            function.node, ImportSession.versions(function.opsetImport), path: "\(label)/")
        }
        continue
      }
      let domain = node.domain == "ai.onnx" ? "" : node.domain
      let version = versions[domain]
      if let version, session.table.row(domain, node.opType, version: version) != nil { continue }
      var entry = missing[OperatorLabel.of(node, version)] ?? Missing()
      entry.since = session.table.firstVersion(domain, node.opType)
      entry.count += 1
      if entry.nodes.count < 3 { entry.nodes.append(label) }
      missing[OperatorLabel.of(node, version)] = entry
    }
  }

  private func report() throws(ApusError) {
    guard !missing.isEmpty else { return }
    let total = missing.values.reduce(0) { $0 + $1.count }
    let lines = missing.sorted { $0.key < $1.key }.map { name, entry in
      let nodes = entry.nodes.map { "'\($0)'" }.joined(separator: ", ")
      let more = entry.count > entry.nodes.count ? ", ..." : ""
      return "\n  \(name): \(entry.count) node\(entry.count == 1 ? "" : "s") (\(nodes)\(more))"
        + (entry.since.map { ", known from version \($0)" } ?? "")
    }
    throw ApusError(
      .unsupportedOperator,
      "\(missing.count) operator\(missing.count == 1 ? "" : "s") in \(total) "
        + "node\(total == 1 ? " is" : "s are") not supported:" + lines.joined(),
      hint: "'apus ops' lists what is supported; register an operator of your own "
        + "(ONNXOperatorTable.register, apus.register_operator in Python), or export the model with "
        + "other operators",
      location: GraphLocation(file: session.file.path))
  }
}
