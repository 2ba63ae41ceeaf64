// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Reads ONNX models.
///
/// Operator sets 7 and up are understood; each node is read by the newest definition that is not
/// newer than the version its model imports. Large weights stay in the mapped file.
public enum ONNXImporter {
  /// Imports a model file.
  ///
  /// - Throws: `file-access`, `malformed-file`, `unsupported-operator` (one error naming all),
  ///   `invalid-graph`, `invalid-attribute` or `type-mismatch`, naming file, node and operator.
  public static func `import`(path: String, table: ONNXOperatorTable = .standard) throws(ApusError)
    -> Graph
  {
    try build(try ModelFile(path: path), table)
  }

  /// Imports a model in memory.
  ///
  /// - Parameter folder: where external data files are looked up; nil refuses them.
  public static func `import`(
    bytes: [UInt8], folder: String? = nil, table: ONNXOperatorTable = .standard
  ) throws(ApusError) -> Graph {
    try build(try ModelFile(bytes: bytes, folder: folder), table)
  }

  private static func build(_ file: ModelFile, _ table: ONNXOperatorTable) throws(ApusError) -> Graph
  {
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
