// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel

/// How much workspace a kernel may use, and what that means for a network: found for all layers before any is
/// timed, so that one message says what the limit costs.
struct WorkspaceLimit {
  /// The most bytes.
  let byteCount: Int

  /// Choices of one problem that need too much, by id, with the reason.
  private var refused: [String: [String: String]] = [:]
  /// Layers whose best kernel by estimate does not fit, though others do, and what it needs.
  private var slowed: [Layer] = []

  private struct Layer {
    var entry: ProblemCollector.Entry
    var need: Int
  }

  /// Asks every candidate of every problem how much it needs.
  ///
  /// - Throws: `resource-limit` when no kernel of a layer fits, with the smallest limit that would do for all
  ///   layers. The portable tactic does not count where there are others: it needs no workspace because it
  ///   allocates what it needs, and it is slower by orders of magnitude.
  init(_ byteCount: Int, _ entries: [ProblemCollector.Entry], _ library: KernelLibrary)
    throws(ApusError)
  {
    self.byteCount = byteCount
    var missing: [Layer] = []
    for entry in entries {
      let choices = library.selector.candidates(entry.problem).choices
      var needs: [(choice: TacticChoice, bytes: Int)] = []
      for choice in choices {
        do {
          needs.append((choice, try library.compile(choice, entry.problem).kernel.workspaceByteCount))
        } catch where error.code == .resourceLimit || error.code == .notYetSupported {
          // Tuning meets it again and keeps the reason.
        }
      }
      let tooLarge = needs.filter { $0.bytes > byteCount }
      guard !tooLarge.isEmpty else { continue }
      for (choice, bytes) in tooLarge {
        refused[entry.problem.key, default: [:]][choice.id] =
          "needs \(bytes) bytes of workspace, allowed are \(byteCount)"
      }
      let fast = needs.filter { $0.choice.tactic.source != "portable" }
      if !fast.contains(where: { $0.bytes <= byteCount }) {
        missing.append(Layer(entry: entry, need: (fast.isEmpty ? needs : fast).map(\.bytes).min() ?? 0))
      } else if let best = needs.first, best.bytes > byteCount {
        slowed.append(Layer(entry: entry, need: best.bytes))
      }
    }
    if let first = missing.first {
      let need = missing.map(\.need).max() ?? 0
      throw ApusError(
        .resourceLimit,
        "no kernel fits the workspace of \(byteCount) bytes for \(Self.list(missing))",
        hint: "the smallest workspace that would do is \(need) bytes", location: first.entry.node.location)
    }
  }

  /// The choices that fit, and the others with the reason.
  func divide(_ choices: [TacticChoice], _ problem: Problem) -> (
    fitting: [TacticChoice], refusals: [(id: String, reason: String)]
  ) {
    guard let known = refused[problem.key] else { return (choices, []) }
    return (
      choices.filter { known[$0.id] == nil },
      choices.compactMap { choice in known[choice.id].map { (choice.id, $0) } }
    )
  }

  /// The choices that fit, for a problem that was not among those looked at first.
  func fitting(_ choices: [TacticChoice], _ problem: Problem, _ library: KernelLibrary)
    throws(ApusError) -> [TacticChoice]
  {
    var result: [TacticChoice] = []
    for choice in choices {
      do {
        if try library.compile(choice, problem).kernel.workspaceByteCount <= byteCount { result.append(choice) }
      } catch where error.code == .resourceLimit || error.code == .notYetSupported {
        continue
      }
    }
    return result
  }

  /// What users should know: where the limit keeps a network from the kernels that it would have else.
  var note: String? {
    guard !slowed.isEmpty else { return nil }
    let need = slowed.map(\.need).max() ?? 0
    return "the workspace limit of \(byteCount) bytes rules out the kernels expected to be fastest for "
      + "\(Self.list(slowed)); \(need) bytes would do for all of them"
  }

  /// Names the first few layers and counts the rest.
  private static func list(_ layers: [Layer]) -> String {
    let names = layers.flatMap(\.entry.names)
    let few = names.prefix(3).map { "'\($0)'" }.joined(separator: ", ")
    let word = names.count == 1 ? "layer" : "\(names.count) layers:"
    return names.count > 3 ? "\(word) \(few) and \(names.count - 3) more" : "\(word) \(few)"
  }
}
