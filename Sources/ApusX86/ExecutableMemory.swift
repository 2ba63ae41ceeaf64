// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Machine code in memory that can run. Pages are writable while the code is copied in and executable
/// afterwards, never both.
package final class ExecutableMemory: Sendable {
  /// The address of the first instruction.
  package let entry: UInt
  /// The bytes of code and constants.
  package let byteCount: Int
  private let mappedByteCount: Int

  /// Copies `code` to new pages and makes them executable. Profilers are told `name`.
  package init(_ code: [UInt8], name: String) throws(ApusError) {
    let page = max(4096, Int(sysconf(Int32(_SC_PAGESIZE))))
    let size = max(page, (code.count + page - 1) / page * page)
    let mapping = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard mapping != MAP_FAILED, let mapping else {
      throw ApusError(.resourceLimit, "cannot map \(size) bytes for generated code")
    }
    code.withUnsafeBytes { bytes in
      if let source = bytes.baseAddress { memcpy(mapping, source, bytes.count) }
    }
    guard mprotect(mapping, size, PROT_READ | PROT_EXEC) == 0 else {
      munmap(mapping, size)
      throw ApusError(
        .execution, "the system does not allow generated code to run",
        hint: "set APUS_CPU_ISA=portable to run without generated code")
    }
    entry = UInt(bitPattern: mapping)
    byteCount = code.count
    mappedByteCount = size
    CodeListing.add(name, code, at: entry)
  }

  /// The entry as a C function pointer type.
  package func function<Function>(as type: Function.Type) -> Function {
    unsafeBitCast(entry, to: type)
  }

  deinit { munmap(UnsafeMutableRawPointer(bitPattern: entry), mappedByteCount) }
}
