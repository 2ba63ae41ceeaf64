// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Reads ONNX models.
///
/// Operator sets 7 and up are understood; each node is read by the newest definition that is not
/// newer than the version its model imports. Large weights stay in the mapped file.
public struct ONNXImporter: Sendable {
  private let table: ONNXOperatorTable

  /// Creates an importer that knows these operators.
  public init(table: ONNXOperatorTable = .standard) { self.table = table }

  /// Imports a model file.
  ///
  /// - Throws: `file-access`, `malformed-file`, `unsupported-operator` (one error naming all),
  ///   `invalid-graph`, `invalid-attribute` or `type-mismatch`, naming file, node and operator.
  public func importModel(path: String) throws(ApusError) -> Graph {
    try build(try ModelFile(path: path))
  }

  /// Imports a model in memory; the bytes are copied once.
  ///
  /// - Parameter directory: Where external data files are looked up; nil refuses them.
  public func importModel(bytes: UnsafeRawBufferPointer, directory: String? = nil)
    throws(ApusError) -> Graph
  {
    try build(try ModelFile(try ByteView(copying: bytes), directory: directory))
  }

  /// Imports a model in memory; the bytes are copied once.
  ///
  /// - Parameter directory: Where external data files are looked up; nil refuses them.
  public func importModel(bytes: [UInt8], directory: String? = nil) throws(ApusError) -> Graph {
    try build(try ModelFile(try ByteView(copying: bytes), directory: directory))
  }

  private func build(_ file: ModelFile) throws(ApusError) -> Graph {
    let session = try ImportSession(file, table: table)
    try OperatorSupport.check(session)
    let graph = try GraphImporter.importModel(session)
    do {
      try GraphVerifier.verify(graph)
    } catch {
      throw error.at(GraphLocation(file: file.path))
    }
    return graph
  }
}
