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
  public var expression: ScalarExpr {
    let clamped = ScalarExpr.max(
      .const(Double(range.lowerBound)), .min(.const(Double(range.upperBound)), steps))
    let rounded = ScalarExpr.unary(.round, clamped)
    return .cast(zeroPoint == 0 ? rounded : rounded + .const(Double(zeroPoint)), type)
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

extension ScalarExpr {
  /// The expression with quotients by constants as products with their reciprocals, which may differ in
  /// the last place.
  public func multiplyingByReciprocals() -> ScalarExpr {
    switch self {
    case .input, .const: self
    case .binary(.divide, let a, .const(let divisor)) where divisor != 0:
      a.multiplyingByReciprocals() * .const(1 / divisor)
    case .unary(let function, let a): .unary(function, a.multiplyingByReciprocals())
    case .cast(let a, let type): .cast(a.multiplyingByReciprocals(), type)
    case .binary(let function, let a, let b):
      .binary(function, a.multiplyingByReciprocals(), b.multiplyingByReciprocals())
    case .select(let c, let a, let b):
      .select(
        c.multiplyingByReciprocals(), a.multiplyingByReciprocals(), b.multiplyingByReciprocals())
    }
  }
}
