// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The interrupt key: pressed once it asks for an early end that keeps what there is, pressed again it ends the
/// process.
enum Interrupt {
  private static let flag = Atomic(false)

  /// Whether the key was pressed.
  static var isRequested: Bool { flag.load(ordering: .relaxed) }

  /// Begins to listen. A process that was started to ignore interrupts goes on doing so.
  static func listen() {
    // Not in the handler for the first time, where nothing may be allocated.
    flag.store(false, ordering: .relaxed)
    let before = signal(SIGINT) { number in
      Interrupt.flag.store(true, ordering: .relaxed)
      signal(number, SIG_DFL)
    }
    if unsafeBitCast(before, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self) { signal(SIGINT, SIG_IGN) }
  }
}
