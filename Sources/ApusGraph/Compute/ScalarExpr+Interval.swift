// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

extension ScalarExpr {
  /// Numbers that enclose every value of the expression, given those of its inputs, but for roundings; nil where that is
  /// not known or single precision might overflow on the way. Functions of few uses are not looked into.
  public func interval(_ input: (Int) -> ClosedRange<Double>?) -> ClosedRange<Double>? {
    guard let found = enclosure(input), found.lowerBound > -0x1p100, found.upperBound < 0x1p100 else { return nil }
    return found
  }

  private func enclosure(_ input: (Int) -> ClosedRange<Double>?) -> ClosedRange<Double>? {
    switch self {
    case .input(let index): return input(index)
    case .const(let number): return number.isFinite ? number...number : nil
    case .cast(let a, let type):
      if type.isInteger { return Double(type.integerRange.lowerBound)...Double(type.integerRange.upperBound) }
      return type == .float32 ? a.interval(input) : nil
    case .unary(let function, let a):
      guard let a = a.interval(input) else { return nil }
      switch function {
      case .negate: return -a.upperBound...(-a.lowerBound)
      case .absolute: return 0...Swift.max(abs(a.lowerBound), abs(a.upperBound))
      case .sigmoid: return 0...1
      case .round, .floor, .ceiling, .truncate: return a.lowerBound - 1...a.upperBound + 1
      default: return nil
      }
    case .binary(let function, let a, let b):
      guard let a = a.interval(input), let b = b.interval(input) else { return nil }
      switch function {
      case .add: return a.lowerBound + b.lowerBound...a.upperBound + b.upperBound
      case .subtract: return a.lowerBound - b.upperBound...a.upperBound - b.lowerBound
      case .minimum: return Swift.min(a.lowerBound, b.lowerBound)...Swift.min(a.upperBound, b.upperBound)
      case .maximum: return Swift.max(a.lowerBound, b.lowerBound)...Swift.max(a.upperBound, b.upperBound)
      case .multiply:
        let corners = [a.lowerBound, a.upperBound].flatMap { x in [x * b.lowerBound, x * b.upperBound] }
        return (corners.min() ?? 0)...(corners.max() ?? 0)
      default: return nil
      }
    case .select: return nil
    }
  }
}
