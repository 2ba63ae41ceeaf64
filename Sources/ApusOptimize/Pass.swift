// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// A rewrite of a whole graph. Passes are values in one visible list (`Passes.standard`).
public protocol Pass: Sendable {
  /// A verb phrase in upper camel case, as dumps and `APUS_DISABLE_RULES` name it.
  var name: String { get }
  /// Rewrites the graph and returns the number of rewrites made.
  ///
  /// - Throws: `internal` when an invariant breaks; the pipeline adds the pass's name.
  func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int
}

/// What passes share: limits for bisection and the record of what was done and refused.
public final class PassContext {
  /// A rewrite that was refused, for `apus inspect --why`.
  public struct Refusal: Sendable, Hashable {
    /// The pass or rule.
    public let rule: String
    /// The node it looked at.
    public let node: String
    /// Why not.
    public let reason: String
  }

  /// The refusals in order.
  public private(set) var refusals: [Refusal] = []
  /// The rewrites made, by rule.
  public private(set) var rewriteCounts: [String: Int] = [:]
  private var remaining: Int
  private let disabled: Set<String>

  /// A context with the limits of `APUS_REWRITE_LIMIT` and `APUS_DISABLE_RULES`.
  public init() {
    remaining = Int(Knobs.rewriteLimit.text) ?? .max
    disabled = Set(Knobs.disableRules.list)
  }

  /// Whether the rule is switched on.
  public func isEnabled(_ rule: String) -> Bool { !disabled.contains(rule) }

  /// Asks to make one rewrite; false when the limit is reached or the rule is switched off.
  public func claim(_ rule: String, _ node: @autoclosure () -> String) -> Bool {
    guard remaining > 0, isEnabled(rule) else { return false }
    remaining -= 1
    rewriteCounts[rule, default: 0] += 1
    Log.debug(3, "rewrite \(rule): \(node())")
    return true
  }

  /// Records that a rewrite was looked at and refused.
  public func refuse(_ rule: String, _ node: String, because reason: String) {
    refusals.append(Refusal(rule: rule, node: node, reason: reason))
    Log.debug(3, "refused \(rule) at \(node): \(reason)")
  }
}
