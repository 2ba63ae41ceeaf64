// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Tells profilers (`APUS_PERF_MAP`) and disassemblers (`APUS_JIT_DUMP`) about generated code.
enum CodeListing {
  private static let perfMap = Knobs.perfMap.isOn ? "/tmp/perf-\(getpid()).map" : nil
  private static let folder = Knobs.jitDump.text
  private static let count = Mutex(0)

  /// Adds a piece of code to what was asked for. What cannot be written is only a warning.
  static func add(_ name: String, _ code: [UInt8], at entry: UInt) {
    if let perfMap {
      let line = "\(String(entry, radix: 16)) \(String(code.count, radix: 16)) apus \(name)\n"
      append(line, to: perfMap)
    }
    guard !folder.isEmpty else { return }
    let number = count.withLock { count in
      count += 1
      return count
    }
    let path = "\(folder)/\(getpid())-\(number)-\(name.replacing(" ", with: "-")).bin"
    do throws(ApusError) {
      try FileIO.write(bytes: code, to: path)
    } catch {
      Log.warning("APUS_JIT_DUMP: \(error)")
    }
  }

  private static func append(_ line: String, to path: String) {
    let descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600)
    var text = line
    let written = text.withUTF8 { write(descriptor, $0.baseAddress, $0.count) }
    if written != line.utf8.count { Log.warning("APUS_PERF_MAP: cannot write \(path)") }
    if descriptor >= 0 { close(descriptor) }
  }
}
