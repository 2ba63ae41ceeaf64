// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import Synchronization

/// Shows the progress of a build that takes over a second, and ends it early when it is interrupted.
final class ProgressPrinter: Sendable {
  private let lastShown = Mutex(0.0)
  private let start = Clock.seconds
  private let saidWhy = Mutex(false)

  init() { Interrupt.listen() }

  /// The handler to give to a builder.
  var handler: ProgressHandler {
    { progress in
      self.show(progress)
      guard Interrupt.isRequested else { return true }
      self.sayWhy()
      return false
    }
  }

  private func sayWhy() {
    let isFirst = saidWhy.withLock { said in
      defer { said = true }
      return !said
    }
    if isFirst { Terminal.error("interrupted: ending early; again to stop at once") }
  }

  private func show(_ progress: BuildProgress) {
    let now = Clock.seconds
    let isLast = progress.done == progress.total
    guard now - start > 1 else { return }
    let isDue = lastShown.withLock { last in
      guard now - last > 1 || isLast else { return false }
      last = now
      return true
    }
    guard isDue else { return }
    var text = "\(progress.phase): \(progress.done)/\(progress.total)"
    if progress.phase == "tuned" { text += " problems, \(progress.timed) tactics timed" }
    text += ", \(Terminal.fixed(progress.elapsedSeconds, 1)) s"
    if let rest = progress.remainingSeconds, !isLast {
      text += ", about \(Terminal.fixed(rest, 0)) s left"
    }
    Terminal.progress(text, isLast: isLast)
  }
}
