// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Whole-file reading and crash-safe writing.
public enum FileIO {
  /// Writes the chunks to `path` through a temporary file beside it and a rename, so that nobody
  /// ever sees a half-written file and a failure leaves the old one untouched.
  public static func write(_ chunks: [UnsafeRawBufferPointer], to path: String) throws(ApusError) {
    let temporary = "\(path).tmp.\(getpid())"
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else { throw FileError.because("cannot create", path) }
    for chunk in chunks {
      var done = 0
      while done < chunk.count {
        let written = Glibc_write(descriptor, chunk.baseAddress! + done, chunk.count - done)
        guard written > 0 else {
          let error = FileError.because("cannot write", path)
          close(descriptor)
          unlink(temporary)
          throw error
        }
        done += written
      }
    }
    close(descriptor)
    guard rename(temporary, path) == 0 else {
      let error = FileError.because("cannot replace", path)
      unlink(temporary)
      throw error
    }
  }

  /// Writes bytes to `path`; see `write(_:to:)` for chunks.
  public static func write(bytes: [UInt8], to path: String) throws(ApusError) {
    let result: Result<Void, ApusError> = bytes.withUnsafeBytes { buffer in
      do throws(ApusError) {
        try write([buffer], to: path)
        return .success(())
      } catch { return .failure(error) }
    }
    try result.get()
  }

  /// Writes a text as UTF-8.
  public static func write(text: String, to path: String) throws(ApusError) {
    try write(bytes: Array(text.utf8), to: path)
  }

  /// Reads a whole file into memory.
  public static func read(_ path: String) throws(ApusError) -> [UInt8] {
    let file = try MappedFile(path: path)
    return withExtendedLifetime(file) { Array($0.bytes) }
  }

  /// Whether something exists at `path`.
  public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  /// Whether `path` is a folder.
  public static func isFolder(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  /// The names in a folder, without those that begin with a dot, in no order.
  public static func names(inFolder path: String) throws(ApusError) -> [String] {
    guard let folder = opendir(path) else { throw FileError.because("cannot open", path) }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { field in
        field.withMemoryRebound(to: CChar.self, capacity: 1) { String(cString: $0) }
      }
      if !name.hasPrefix(".") { names.append(name) }
    }
    return names
  }

  /// Removes a file; nothing happens when there is none.
  public static func remove(_ path: String) { unlink(path) }
}

private func Glibc_write(_ descriptor: Int32, _ base: UnsafeRawPointer, _ count: Int) -> Int {
  write(descriptor, base, count)
}
