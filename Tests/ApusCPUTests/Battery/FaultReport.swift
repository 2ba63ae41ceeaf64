// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#endif

/// Says which kernel was running when the process faults: a kernel that leaves its buffers ends the test, and
/// nothing else would tell which one it was.
enum FaultReport {
  private nonisolated(unsafe) static let text = UnsafeMutablePointer<UInt8>.allocate(capacity: 4096)
  private nonisolated(unsafe) static var length = 0

  /// Remembers what runs until the next call.
  static func running(_ description: String) {
    length = 0
    var count = 0
    for byte in "\nThe battery was running \(description)\n".utf8 where count < 4096 {
      text[count] = byte
      count += 1
    }
    length = count
  }

  /// Forgets it.
  static func done() { length = 0 }

  /// Installs the report for faults.
  static func install() {
    running("")
    done()
    #if canImport(Glibc)
      for number in [SIGSEGV, SIGBUS, SIGILL] {
        // Only what may be called in a handler; then the instruction faults again and ends the process.
        signal(number) { number in
          if FaultReport.length > 0 { write(2, FaultReport.text, FaultReport.length) }
          signal(number, SIG_DFL)
        }
      }
    #endif
  }
}
