// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Which layers a pass is to change, by the names of their nodes.
public enum LayerChoice: Sendable, Hashable {
  case allBut(Set<String>)
  case only(Set<String>)

  /// Whether a layer is among them.
  public func contains(_ name: String) -> Bool {
    switch self {
    case .allBut(let others): !others.contains(name)
    case .only(let names): names.contains(name)
    }
  }

  /// Every layer.
  public static let all = LayerChoice.allBut([])
}
