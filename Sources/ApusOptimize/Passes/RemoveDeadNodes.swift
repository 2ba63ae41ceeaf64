// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Removes nodes none of whose results is used.
public struct RemoveDeadNodes: Pass {
  public let name = "RemoveDeadNodes"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var removed = 0
    for id in try graph.topologicalOrder().reversed()
    where graph[id].outputs.allSatisfy({ graph.useCount($0) == 0 }) {
      graph.remove(id)
      removed += 1
    }
    return removed
  }
}
