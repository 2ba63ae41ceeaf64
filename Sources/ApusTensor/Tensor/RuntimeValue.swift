// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// A value while a network runs: a tensor, or a container of values.
public indirect enum RuntimeValue: Sendable {
  /// A tensor.
  case tensor(Tensor)
  /// A list of values; the element type tells empty lists apart.
  case sequence([RuntimeValue], of: ValueType)
  /// A value that may be absent.
  case optional(RuntimeValue?, of: ValueType)

  /// The tensor, when this is one.
  public var tensor: Tensor? {
    if case .tensor(let tensor) = self { return tensor }
    return nil
  }

  /// The type, every size known.
  public var type: ValueType {
    switch self {
    case .tensor(let tensor): .tensor(tensor.type)
    case .sequence(_, let element): .sequence(element)
    case .optional(_, let element): .optional(element)
    }
  }
}
