// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusEngine
import ApusGraph
import ApusONNX
import ApusTensor

/// Reads models of any supported format.
public enum Model {
  /// The network in a file.
  ///
  /// - Parameter table: The operators that are understood, with those of one's own.
  /// - Throws: `file-access`, `malformed-file`, `unsupported-operator` ... with the file's name.
  public static func load(path: String, table: ONNXOperatorTable = .standard) throws(ApusError)
    -> Graph
  {
    try ONNXImporter(table: table).importModel(path: path)
  }

  /// The network in the bytes of a file; external data is looked for in `directory`.
  public static func load(
    _ bytes: UnsafeRawBufferPointer, directory: String?, table: ONNXOperatorTable = .standard
  ) throws(ApusError) -> Graph {
    try ONNXImporter(table: table).importModel(bytes: bytes, directory: directory)
  }

  /// Whether the file begins like an engine, so that it is loaded and not built.
  public static func isEngine(path: String) throws(ApusError) -> Bool {
    let file = try MappedFile(path: path)
    return withExtendedLifetime(file) { EngineFile.looksLikeEngine($0.bytes) }
  }
}

extension Builder {
  /// Builds an engine from a model file.
  public func build(contentsOf path: String, table: ONNXOperatorTable = .standard)
    throws(ApusError) -> Engine
  {
    do {
      return try build(try Model.load(path: path, table: table))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Builds an engine from a model's bytes; external data is looked for in `directory`.
  public func build(
    _ bytes: UnsafeRawBufferPointer, directory: String?, table: ONNXOperatorTable = .standard
  ) throws(ApusError) -> Engine {
    try build(try Model.load(bytes, directory: directory, table: table))
  }
}
