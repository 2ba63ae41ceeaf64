// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

extension Engine {
  /// One kernel of an engine's plan.
  public struct KernelSummary: Sendable {
    /// The node's name.
    public let name: String
    /// The model nodes it computes.
    public let sources: [String]
    /// The tactic's id.
    public let tactic: String
    /// The problem's text.
    public let problem: String
    /// What was measured for it when the engine was built; nil when nothing was.
    public let tuned: BuildReport.Tuned?
  }

  /// The kernels that run at the configuration's shapes, in order.
  public func kernels(_ configuration: BuilderConfiguration = BuilderConfiguration())
    throws(ApusError) -> [KernelSummary]
  {
    try sampleStage(configuration).plan?.steps.map { step in
      KernelSummary(
        name: step.nodeName, sources: step.sources, tactic: step.tacticID,
        problem: step.problem.key,
        tuned: report.tuned.first { $0.problem == step.problem.key })
    } ?? []
  }
}
