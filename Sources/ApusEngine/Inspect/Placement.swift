// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Which kind of kernel serves which operators, and how much of the work that is.
public struct Placement: Sendable {
  /// The kernels of one operator from one source.
  public struct Row: Sendable {
    /// The operator; `Conv + epilogue` is a convolution with elementwise operations fused behind it.
    public let operatorName: String
    /// Where the kernels come from: `jit` is code generated for the problem, `native` compiled loops,
    /// `portable` the operator's own definition, which is slow, and `host` the same outside any plan
    /// (control flow, sequences).
    public let source: String
    /// The number of kernels.
    public var kernelCount: Int
    /// The share of the work, where the work of a kernel is its operations or its bytes, whichever
    /// are more. Nodes outside any plan have no known work.
    public var share: Double
  }

  /// The rows, most work first.
  public let rows: [Row]

  /// The share of the work that runs on the portable path.
  public var portableShare: Double {
    rows.reduce(0) { $1.source == "portable" ? $0 + $1.share : $0 }
  }

  init(_ steps: [StaticPlan.Step], host: [Node]) {
    struct Key: Hashable {
      let name: String
      let source: String
    }
    var work: [Key: (count: Int, work: Double)] = [:]
    for step in steps {
      let cost = step.problem.cost
      let key = Key(name: Self.name(step.problem.op), source: step.tacticSource)
      let known = work[key] ?? (0, 0)
      work[key] = (known.count + 1, known.work + max(cost.operations, cost.bytes))
    }
    for node in host {
      let key = Key(name: node.op.name, source: "host")
      work[key] = ((work[key]?.count ?? 0) + 1, 0)
    }
    let total = max(1, work.values.reduce(0) { $0 + $1.work })
    rows = work.map { key, value in
      Row(
        operatorName: key.name, source: key.source, kernelCount: value.count,
        share: value.work / total)
    }.sorted { ($1.share, $0.operatorName, $0.source) < ($0.share, $1.operatorName, $1.source) }
  }

  private static func name(_ op: any Operator) -> String {
    guard let fused = op as? Fused else { return op.name }
    return "\(fused.anchor.name) + epilogue"
  }

  /// The placement as JSON.
  public var json: JSON {
    .object([
      ("portable_share", .number(portableShare)),
      (
        "operators",
        .array(
          rows.map {
            .object([
              ("operator", .string($0.operatorName)), ("source", .string($0.source)),
              ("kernels", .int($0.kernelCount)), ("share", .number($0.share)),
            ])
          })
      ),
    ])
  }
}

extension Engine {
  /// Which kind of kernel serves which operators at the configuration's shapes.
  ///
  /// - Throws: `invalid-argument` when the shapes do not fit.
  public func placement(_ configuration: BuilderConfiguration = BuilderConfiguration())
    throws(ApusError) -> Placement
  {
    let stage = try sampleStage(configuration)
    return Placement(stage.plan?.steps ?? [], host: stage.hostNodes.map(\.node))
  }
}
