// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel

/// Consecutive steps of a plan that fall into branches, none of which reads what another one makes: they may run side by
/// side, each on one thread, instead of one after the other with all threads in every kernel.
package struct Fork: Hashable, Sendable {
  /// The steps.
  package let steps: Range<Int>
  /// The steps of each branch in their order; the branch estimated slowest comes first.
  package let branches: [[Int]]

  /// What a timing cache names the choice between both ways; the same problems in the same branches are one choice.
  package func key(_ problem: (Int) -> Problem) -> String {
    let text = branches.map { $0.map { problem($0).key }.joined(separator: ";") }.joined(separator: "|")
    return "fork[\(branches.count), \(steps.count)]/\(Checksum.hex(Checksum.of(text)))"
  }

  /// The names of both choices.
  package static let (inTurn, sideBySide) = ("in-turn", "side-by-side")
  /// Counts up when what was measured before says nothing about today's code.
  package static let version = 1
}
