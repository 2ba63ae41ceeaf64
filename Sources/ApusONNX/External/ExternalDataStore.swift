// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The files beside a model that hold its large tensors; each is mapped once, and only files inside
/// the model's own folder are opened.
final class ExternalDataStore {
  private let folder: String?
  private var files: [String: ByteView] = [:]

  init(folder: String?) { self.folder = folder }

  /// The bytes at a place in an external file.
  ///
  /// - Throws: `invalid-argument` for a path that leaves the model's folder, `file-access`, or
  ///   `malformed-file` when the place lies outside the file.
  func bytes(location: String, offset: String?, length: String?, expected: Int) throws(ApusError)
    -> ByteView
  {
    let file = try open(location)
    let start = try Self.number(offset, "offset") ?? 0
    let count = try Self.number(length, "length") ?? expected
    guard count == expected else {
      throw ApusError(
        .malformedFile,
        "the external data in '\(location)' is said to have \(count) bytes, its shape needs \(expected)"
      )
    }
    guard let view = file.slice(start, count) else {
      throw ApusError(
        .malformedFile,
        "bytes \(start) to \(start)+\(count) lie outside '\(location)', which has \(file.count) bytes",
        hint: "the external data file is cut off or belongs to another model")
    }
    return view
  }

  private static func number(_ text: String?, _ what: String) throws(ApusError) -> Int? {
    guard let text, !text.isEmpty else { return nil }
    guard let value = Int(text), value >= 0 else {
      throw ApusError(.malformedFile, "the external data's \(what) is '\(text)', not a size")
    }
    return value
  }

  private func open(_ location: String) throws(ApusError) -> ByteView {
    if let known = files[location] { return known }
    guard let folder else {
      throw ApusError(
        .fileAccess, "the model keeps data in the external file '\(location)'",
        hint: "import it by its path, or name the folder of its data, instead of only its bytes")
    }
    let parts = location.split(separator: "/", omittingEmptySubsequences: false)
    let leaves =
      location.isEmpty || location.hasPrefix("/") || parts.contains("..")
      || location.contains("\0") || location.contains("\\")
    guard !leaves else { throw Self.leavesFolder(location) }
    let path = "\(folder)/\(location)"
    // Links may not lead out of the folder either.
    if let real = Self.realPath(path), let root = Self.realPath(folder) {
      guard real.hasPrefix(root == "/" ? "/" : root + "/") else {
        throw Self.leavesFolder(location)
      }
    }
    let view = ByteView(try MappedFile(path: path))
    files[location] = view
    return view
  }

  private static func leavesFolder(_ location: String) -> ApusError {
    ApusError(
      .invalidArgument, "the external data path '\(location)' leaves the model's folder",
      hint: "put the data file beside the model and name it by a relative path")
  }

  private static func realPath(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
  }
}
