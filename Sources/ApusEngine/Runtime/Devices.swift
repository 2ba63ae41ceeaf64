// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusKernel

/// Finds the device a user names.
public enum Devices {
  /// The backend for `auto`, `cpu` or `cuda[:N]`.
  ///
  /// - Throws: `not-yet-supported` for a device this build cannot drive, `invalid-argument` for an
  ///   unknown name.
  public static func backend(for name: String, threadCount: Int) throws(ApusError) -> any Backend {
    guard threadCount >= 0, threadCount <= 4096 else {
      throw ApusError(.invalidArgument, "\(threadCount) threads are not possible")
    }
    switch name {
    case "auto", "cpu": return try CPUBackend.shared(threadCount: threadCount)
    case "cuda": throw noCUDA(name)
    default:
      if name.hasPrefix("cuda:"), Int(name.dropFirst(5)) != nil { throw noCUDA(name) }
      throw ApusError(
        .invalidArgument, "there is no device '\(name)'", hint: "use auto, cpu or cuda[:N]")
    }
  }

  /// What a device reaches at most with so many threads, measured now, each of it for so many seconds; nil where that is
  /// not known.
  ///
  /// - Throws: as `backend`.
  public static func roofline(
    of name: String, threadCount: Int, seconds: Double = 0.02
  ) throws(ApusError) -> Roofline? {
    try backend(for: name, threadCount: threadCount).roofline(seconds: seconds)
  }

  private static func noCUDA(_ name: String) -> ApusError {
    ApusError(
      .notYetSupported, "device '\(name)' is not available in this version yet",
      hint: "use --device cpu")
  }

  /// Every usable device as JSON: `kind`, `name`, `isa`, `threads`, `fingerprint`,
  /// `features`.
  public static var json: JSON {
    let traits = (try? all()) ?? []
    return .array(
      traits.map {
        .object([
          ("kind", .string($0.kind)), ("name", .string($0.name)), ("isa", .string($0.isa)),
          ("threads", .int($0.threadCount)), ("fingerprint", .string($0.fingerprint)),
          ("features", .array($0.features.map { .string($0) })),
        ])
      })
  }

  /// Every usable device.
  public static func all() throws(ApusError) -> [DeviceTraits] {
    [try CPUBackend.shared(threadCount: 0).traits]
  }
}
