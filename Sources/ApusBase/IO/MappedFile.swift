// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A file mapped read-only into memory for as long as this object lives.
public final class MappedFile: Sendable {
  /// The path as the caller gave it.
  public let path: String
  /// The size of the file in bytes.
  public let byteCount: Int
  private nonisolated(unsafe) let base: UnsafeRawPointer

  /// Maps the file.
  ///
  /// - Throws: `file-access` when the path is not a readable regular file.
  public init(path: String) throws(ApusError) {
    self.path = path
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError.because("cannot open", path) }
    defer { close(descriptor) }
    var info = stat()
    guard fstat(descriptor, &info) == 0 else { throw FileError.because("cannot inspect", path) }
    guard (info.st_mode & S_IFMT) == S_IFREG else {
      throw ApusError(
        .fileAccess, "'\(path)' is not a regular file", hint: "give the path of a file",
        location: GraphLocation(file: path))
    }
    byteCount = Int(info.st_size)
    if byteCount == 0 {
      base = UnsafeRawPointer(bitPattern: 64)!
      return
    }
    let mapping = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor, 0)
    guard let mapping, mapping != MAP_FAILED else { throw FileError.because("cannot map", path) }
    base = UnsafeRawPointer(mapping)
  }

  deinit {
    if byteCount > 0 { munmap(UnsafeMutableRawPointer(mutating: base), byteCount) }
  }

  /// Tells the system that this part is not read again soon: it need not stay in memory.
  public func release(_ part: UnsafeRawBufferPointer) {
    guard let start = part.baseAddress, start >= base, start + part.count <= base + byteCount else {
      return
    }
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let first = (start - base + page - 1) / page * page
    let end = (start - base + part.count) / page * page
    if end > first {
      madvise(UnsafeMutableRawPointer(mutating: base + first), end - first, MADV_DONTNEED)
    }
  }

  /// The bytes; valid while this object lives.
  public var bytes: UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(start: base, count: byteCount)
  }
}

/// Errors of system calls on files.
package enum FileError {
  /// An error for the system call that just failed, with the system's reason.
  package static func because(_ what: String, _ path: String) -> ApusError {
    ApusError(
      .fileAccess, "\(what) '\(path)': \(String(cString: strerror(errno)))",
      hint: "check that the path exists and that you may access it",
      location: GraphLocation(file: path))
  }
}
