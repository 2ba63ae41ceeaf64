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

/// Output for people.
enum Terminal {
  /// A line on standard output.
  static func line(_ text: String) { put(text + "\n", to: 1) }

  /// A message on standard error.
  static func error(_ text: String) { put("apus: \(text)\n", to: 2) }

  /// Progress on standard error: rewritten in place on a terminal, plain lines elsewhere.
  static func progress(_ text: String, isLast: Bool) {
    if isatty(2) == 1 {
      put("\r\u{1b}[K\(text)\(isLast ? "\n" : "")", to: 2)
    } else {
      put(text + "\n", to: 2)
    }
  }

  private static func put(_ text: String, to descriptor: Int32) {
    var text = text
    text.withUTF8 { bytes in
      var done = 0
      while done < bytes.count {
        let count = write(descriptor, bytes.baseAddress! + done, bytes.count - done)
        if count <= 0 { return }
        done += count
      }
    }
  }

  /// How much of the device's roofline a kernel reaches.
  static func share(_ share: Double?) -> String {
    padded(share.map { fixed(100 * $0, 0) } ?? "-", 4) + " % of roof"
  }

  /// The largest resident size of the process so far, in bytes.
  static var peakMemoryByteCount: Int {
    var usage = rusage()
    #if canImport(Darwin)
      getrusage(RUSAGE_SELF, &usage)
      return usage.ru_maxrss
    #elseif canImport(Glibc)
      getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
      return usage.ru_maxrss * 1024
    #else
      getrusage(RUSAGE_SELF, &usage)
      return usage.ru_maxrss * 1024
    #endif
  }

  /// A number with a fixed number of decimals.
  static func fixed(_ value: Double, _ decimals: Int) -> String {
    guard value.isFinite else { return "\(value)" }
    var scale = 1.0
    for _ in 0..<decimals { scale *= 10 }
    let rounded = (abs(value) * scale).rounded()
    guard rounded < 9e15 else { return "\(value)" }
    let whole = Int(rounded / scale)
    let fraction = String(Int(rounded) - whole * Int(scale))
    let sign = value < 0 && rounded > 0 ? "-" : ""
    guard decimals > 0 else { return "\(sign)\(whole)" }
    return "\(sign)\(whole).\(String(repeating: "0", count: max(0, decimals - fraction.count)))\(fraction)"
  }

  /// A text padded on the right.
  static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }
}
