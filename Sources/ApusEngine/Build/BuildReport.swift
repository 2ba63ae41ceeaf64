// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusKernel
import ApusOptimize

/// What a build did: phases with times, rewrites, tuned problems. Kept in the engine file.
public struct BuildReport: Sendable {
  /// One problem's candidates.
  public struct Tuned: Sendable {
    /// The problem's text.
    public var problem: String
    /// The winner's tactic id.
    public var winner: String
    /// Measured seconds by tactic id.
    public var measurements: [(id: String, seconds: Double)]
    /// Tactics that refused, with reasons; also those that failed verification.
    public var refusals: [(id: String, reason: String)]
    /// Whether the time came from the timing cache.
    public var fromCache: Bool
    /// Arithmetic operations of the problem.
    public var operations = 0.0
    /// What the problem asks of a device; engines that were read from a file do not say.
    public var work: KernelWork?
  }

  /// The precision that was asked for.
  public var precision = ""
  /// Bytes of workspace that a kernel may use, if there was a limit; kernels for other shapes keep it, too.
  public var workspaceLimit: Int?
  /// What users of the engine should know.
  public var notes: [String] = []
  /// The ranges that were used, and how weights were rounded.
  public var calibration: CalibrationTable?
  public var quantization = QuantizationOptions()
  /// Why layers have the precisions they have.
  public var layers: [LayerRecord] = []
  /// Seconds by phase, in order.
  public var phases: [(name: String, seconds: Double)] = []
  /// Rewrites by pass or rule.
  public var rewrites: [(rule: String, count: Int)] = []
  /// Fusions looked at and refused.
  public var refusals: [(rule: String, node: String, reason: String)] = []
  /// The tuned problems.
  public var tuned: [Tuned] = []
  /// Nodes of the imported graph and of the optimised one.
  public var importedNodeCount = 0
  public var optimizedNodeCount = 0
  /// Seconds in all.
  public var totalSeconds = 0.0

  /// Creates an empty report.
  public init() {}

  /// The report as JSON.
  public var json: JSON {
    .object([
      ("total_seconds", .number(totalSeconds)),
      ("precision", .string(precision)),
      ("notes", .array(notes.map { .string($0) })),
      ("imported_nodes", .int(importedNodeCount)),
      ("optimized_nodes", .int(optimizedNodeCount)),
      ("layers", .array(layers.map(\.json))),
      (
        "phases",
        .array(
          phases.map { .object([("name", .string($0.name)), ("seconds", .number($0.seconds))]) })
      ),
      ("rewrites", .object(rewrites.map { ($0.rule, .int($0.count)) })),
      (
        "refused_rewrites",
        .array(
          refusals.map {
            .object([
              ("rule", .string($0.rule)), ("node", .string($0.node)),
              ("reason", .string($0.reason)),
            ])
          })
      ),
    ])
  }
}

extension BuildReport.Tuned {
  /// The record as JSON, times in microseconds.
  public var json: JSON {
    .object([
      ("problem", .string(problem)), ("winner", .string(winner)), ("from_cache", .bool(fromCache)),
      (
        "candidates",
        .array(
          measurements.map {
            .object([("tactic", .string($0.id)), ("microseconds", .number($0.seconds * 1e6))])
          })
      ),
      (
        "refusals",
        .array(
          refusals.map { .object([("tactic", .string($0.id)), ("reason", .string($0.reason))]) })
      ),
    ])
  }
}
