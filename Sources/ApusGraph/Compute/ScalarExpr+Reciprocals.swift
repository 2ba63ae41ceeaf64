// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension ScalarExpr {
  /// The expression with divisions of floating-point numbers by constants as multiplications, which are
  /// ten times as fast: where the reciprocal is exact, and elsewhere where the last bit that may differ does
  /// not decide between two whole numbers or two branches.
  public func multiplyingByReciprocals(isInteger: (ScalarExpr) -> Bool) -> ScalarExpr {
    reciprocals(isInteger, decides: false)
  }

  /// `decides`: whether a step lies between this part and the result.
  private func reciprocals(_ isInteger: (ScalarExpr) -> Bool, decides: Bool) -> ScalarExpr {
    func inner(_ part: ScalarExpr, _ decides: Bool) -> ScalarExpr {
      part.reciprocals(isInteger, decides: decides)
    }
    switch self {
    case .input, .const: return self
    case .unary(let function, let a): return .unary(function, inner(a, decides || function.isStep))
    case .cast(let a, let type): return .cast(inner(a, decides || type.isInteger), type)
    case .select(let condition, let a, let b):
      return .select(inner(condition, true), inner(a, decides), inner(b, decides))
    case .binary(.divide, let a, .const(let divisor))
    where !isInteger(a) && Self.reciprocal(divisor, exact: decides) != nil:
      return inner(a, decides) * .const(Self.reciprocal(divisor, exact: decides) ?? 1)
    case .binary(let function, let a, let b):
      let decides = decides || function.isStep
      return .binary(function, inner(a, decides), inner(b, decides))
    }
  }

  /// A normal reciprocal in single precision.
  private static func reciprocal(_ divisor: Double, exact: Bool) -> Double? {
    let number = Float(divisor)
    let result = 1 / number
    guard result.isNormal, number.isNormal, !exact || number.significand == 1 else { return nil }
    return Double(result)
  }
}

extension UnaryFunction {
  /// Whether the results jump.
  fileprivate var isStep: Bool {
    switch self {
    case .sign, .floor, .ceiling, .round, .truncate, .isNaN, .isInfinite, .logicalNot, .bitwiseNot: true
    default: false
    }
  }
}

extension BinaryFunction {
  fileprivate var isStep: Bool {
    switch self {
    case .add, .subtract, .multiply, .divide, .power, .minimum, .maximum, .arcTangent2: false
    default: true
    }
  }
}
