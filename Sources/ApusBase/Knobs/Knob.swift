// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A setting that can be changed through the environment, listed by `apus knobs`.
public struct Knob: Sendable, Hashable {
  /// The environment variable, for example `APUS_DEBUG`.
  public let name: String
  /// The value used when the variable is not set.
  public let defaultValue: String
  /// One sentence saying what it does.
  public let summary: String

  /// Declares a knob.
  public init(_ name: String, default defaultValue: String, _ summary: String) {
    self.name = name
    self.defaultValue = defaultValue
    self.summary = summary
  }

  /// The text in force: the environment's, else the default.
  public var text: String {
    guard let raw = getenv(name) else { return defaultValue }
    return String(cString: raw)
  }

  /// The value as an integer; the default when the text is not one.
  public var integer: Int { Int(text) ?? Int(defaultValue) ?? 0 }

  /// Whether the value is neither empty, `0`, `false` nor `off`.
  public var isOn: Bool { !["", "0", "false", "off"].contains(text) }

  /// The value as a comma-separated list, empty items removed.
  public var list: [String] { text.split(separator: ",").map(String.init) }
}
