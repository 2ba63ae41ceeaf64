// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

/// Which layers a pass is to change, by the names of their nodes, now or as they were imported.
public enum LayerChoice: Sendable, Hashable {
  case allBut(Set<String>)
  case only(Set<String>)

  /// Whether a layer is among them.
  public func contains(_ node: Node) -> Bool {
    switch self {
    case .allBut(let others): !isNamed(node, in: others)
    case .only(let names): isNamed(node, in: names)
    }
  }

  private func isNamed(_ node: Node, in names: Set<String>) -> Bool {
    names.contains(node.name) || node.sources.contains { names.contains($0) }
  }

  /// Every layer.
  public static let all = LayerChoice.allBut([])
}
