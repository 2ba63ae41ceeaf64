// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

/// Rounding to an integer type as an expression, in one form that kernels recognise.
public struct ScalarQuantization: Hashable, Sendable {
  /// The number in steps of the scale, still broken.
  public var steps: ScalarExpr
  /// The integer that stands for zero.
  public var zeroPoint: Int
  /// The result's type.
  public var type: DataType

  /// Names the parts.
  public init(steps: ScalarExpr, zeroPoint: Int, type: DataType) {
    self.steps = steps
    self.zeroPoint = zeroPoint
    self.type = type
  }

  /// The smallest and the largest result, the zero point taken off.
  public var range: ClosedRange<Int> {
    Int(type.integerRange.lowerBound) - zeroPoint...Int(type.integerRange.upperBound) - zeroPoint
  }

  /// `cast(round(max(low, min(high, steps))) + zeroPoint)`.
  public var expression: ScalarExpr { .cast(rounded, type) }

  /// The same whole number as a float.
  public var rounded: ScalarExpr {
    let clamped = ScalarExpr.max(
      .const(Double(range.lowerBound)), .min(.const(Double(range.upperBound)), steps))
    let rounded = ScalarExpr.unary(.round, clamped)
    return zeroPoint == 0 ? rounded : rounded + .const(Double(zeroPoint))
  }

  /// Reads an expression of that form; nil for any other.
  public init?(_ expression: ScalarExpr) {
    guard case .cast(let whole, let type) = expression, type.isInteger, type.bitWidth <= 16 else {
      return nil
    }
    var rounded = whole
    var zero = 0.0
    if case .binary(.add, let a, .const(let number)) = whole { (rounded, zero) = (a, number) }
    guard zero == zero.rounded(), abs(zero) < 65536, case .unary(.round, let clamped) = rounded,
      case .binary(.maximum, .const(let low), let upper) = clamped,
      case .binary(.minimum, .const(let high), let steps) = upper
    else { return nil }
    self.init(steps: steps, zeroPoint: Int(zero), type: type)
    guard low == Double(range.lowerBound), high == Double(range.upperBound) else { return nil }
  }
}
