// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusProto
import ApusTensor

/// A decoded model together with the bytes its weights lie in.
struct ModelFile {
  /// The path, for messages; nil for a model given as bytes.
  let path: String?
  /// The folder external data is looked up in.
  let folder: String?
  /// The model without its large tensors.
  let model: ONNXModelProto
  /// The serialised model.
  let view: ByteView
  /// External data files, opened once each.
  let external: ExternalDataStore

  /// Decodes the file at `path`.
  init(path: String) throws(ApusError) {
    do {
      try self.init(ByteView(try MappedFile(path: path)), path: path, folder: Self.folder(path))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Decodes a model in memory.
  init(_ view: ByteView, directory: String?) throws(ApusError) {
    try self.init(view, path: nil, folder: directory)
  }

  private init(_ view: ByteView, path: String?, folder: String?) throws(ApusError) {
    self.path = path
    self.folder = folder
    self.view = view
    external = ExternalDataStore(folder: folder)
    guard view.count > 0 else { throw Self.notAModel("the file is empty") }
    let skeleton = try RawDataLifter.skeleton(of: view)
    do {
      model = try ONNXModelProto.decode(skeleton)
    } catch {
      throw Self.notAModel("\(error)")
    }
    guard model.hasGraph else { throw Self.notAModel("it has no graph") }
  }

  private static func notAModel(_ why: String) -> ApusError {
    ApusError(
      .malformedFile, "not a readable ONNX model: \(why)",
      hint: "give a file written by onnx.save or an exporter; onnx.checker.check_model tells more")
  }

  private static func folder(_ path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }
}
