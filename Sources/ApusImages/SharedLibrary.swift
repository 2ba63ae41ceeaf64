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

/// A library of the system that is loaded when it is first needed, and never unloaded.
struct SharedLibrary: Sendable {
  /// What it is called in errors, and the package of Debian and Ubuntu that has it.
  let name: String
  let package: String
  private let handle: Address

  /// A place in memory that does not change.
  private struct Address: @unchecked Sendable {
    let pointer: UnsafeMutableRawPointer
  }

  /// Loads the first of these files that the system finds.
  ///
  /// - Throws: `file-access` saying what to install.
  init(_ name: String, package: String, files: [String]) throws(ApusError) {
    self.name = name
    self.package = package
    guard let handle = files.lazy.compactMap({ dlopen($0, RTLD_NOW | RTLD_LOCAL) }).first else {
      throw ApusError(
        .fileAccess, "the library \(name) is not installed (\(files[0]))",
        hint: "install it, on Debian and Ubuntu: apt-get install \(package); or make arrays of the images "
          + "with python3 -m apus.images")
    }
    self.handle = Address(pointer: handle)
  }

  /// The address of a function.
  ///
  /// - Throws: `incompatible` when the library has none of this name.
  func function(_ symbol: String) throws(ApusError) -> UnsafeMutableRawPointer {
    guard let address = dlsym(handle.pointer, symbol) else {
      throw ApusError(
        .incompatible, "the library \(name) has no function '\(symbol)'",
        hint: "install a newer one: apt-get install \(package)")
    }
    return address
  }
}
