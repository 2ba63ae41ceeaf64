// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Lines for people on standard error, by level of `APUS_DEBUG`.
public enum Log {
  private static let level = Knobs.debug.integer

  /// Whether messages of this level are wanted.
  public static func wants(_ level: Int) -> Bool { Self.level >= level }

  /// Prints the message when `APUS_DEBUG` is at least `level`; the text is built only then.
  public static func debug(_ level: Int, _ message: @autoclosure () -> String) {
    guard wants(level) else { return }
    line("apus[\(level)] \(message())")
  }

  /// Prints what a user wants to know on standard error.
  public static func info(_ message: String) { line("apus: \(message)") }

  /// Prints a warning.
  public static func warning(_ message: String) { line("apus: warning: \(message)") }

  private static func line(_ text: String) {
    var text = text + "\n"
    _ = text.withUTF8 { write(2, $0.baseAddress, $0.count) }
  }
}
