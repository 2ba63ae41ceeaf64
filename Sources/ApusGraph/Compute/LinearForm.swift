// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

/// An expression of floats as a sum of multiples: `sum(factor * atom) + constant`.
///
/// Rewriting an expression through this form merges the scales and offsets that quantised networks leave
/// behind one another. Results may differ in the last place.
public struct LinearForm: Sendable {
  /// A multiple of something that is no sum itself.
  public struct Term: Sendable {
    public var factor: Double
    public var atom: ScalarExpr
  }

  /// The multiples, in the order they were met.
  public var terms: [Term] = []
  /// What is added to them.
  public var constant = 0.0

  /// Reads an expression; its atoms are merged, too.
  public init(_ expression: ScalarExpr) { add(expression, 1) }

  private mutating func add(_ expression: ScalarExpr, _ factor: Double) {
    switch expression {
    case .const(let number): constant += factor * number
    case .binary(.add, let a, let b):
      add(a, factor)
      add(b, factor)
    case .binary(.subtract, let a, let b):
      add(a, factor)
      add(b, -factor)
    case .binary(.multiply, let a, .const(let number)), .binary(.multiply, .const(let number), let a):
      add(a, factor * number)
    case .binary(.divide, let a, .const(let number)) where number != 0: add(a, factor / number)
    case .unary(.negate, let a): add(a, -factor)
    case .binary(let function, let a, .const(let limit))
    where function.isLimit && factor > 0 && factor != 1:
      // The limit of the multiple: what is inside may have a product that takes the factor.
      var inner = LinearForm(a)
      inner.scale(by: factor)
      add(.binary(function, inner.expression, .const(limit * factor)), 1)
    default:
      let atom = expression.mergingAtoms()
      if case .binary(.add, _, _) = atom { return add(atom, factor) }
      if let known = terms.firstIndex(where: { $0.atom == atom }) {
        terms[known].factor += factor
      } else {
        terms.append(Term(factor: factor, atom: atom))
      }
    }
  }

  private mutating func scale(by factor: Double) {
    for index in terms.indices { terms[index].factor *= factor }
    constant *= factor
  }

  /// The sum as an expression of as few products and sums as it takes.
  public var expression: ScalarExpr {
    if let factor = terms.first?.factor, abs(factor) != 1, terms.count > 1,
      terms.allSatisfy({ $0.factor == factor })
    {
      var sum = self
      for index in terms.indices { sum.terms[index].factor = 1 }
      sum.constant /= factor
      return sum.expression * .const(factor)
    }
    var result: ScalarExpr?
    for term in terms where term.factor != 0 {
      switch (result, term.factor) {
      case (nil, 1): result = constant == 0 ? term.atom : term.atom + .const(constant)
      case (nil, let factor):
        let product = term.atom * .const(factor)
        result = constant == 0 ? product : product + .const(constant)
      case (let sum?, 1): result = sum + term.atom
      case (let sum?, -1): result = sum - term.atom
      case (let sum?, let factor): result = term.atom * .const(factor) + sum
      }
    }
    return result ?? .const(constant)
  }
}

extension ScalarExpr {
  /// The expression with every sum of multiples merged (`LinearForm`), and numbers that are rounded to
  /// an integer type and widened again rounded only. For expressions of floats behind integer sums: what
  /// stands inside a conversion from integers is left alone.
  public func mergingScales() -> ScalarExpr { LinearForm(self).expression }

  /// Merges what stands inside an expression that is no sum.
  fileprivate func mergingAtoms() -> ScalarExpr {
    switch self {
    case .input, .const: return self
    case .cast(let inner, .float32):
      guard let quantization = ScalarQuantization(inner) else { return self }
      return ScalarQuantization(
        steps: quantization.steps.mergingScales(), zeroPoint: quantization.zeroPoint,
        type: quantization.type
      ).rounded
    case .cast(let inner, let type): return .cast(inner.mergingScales(), type)
    case .unary(let function, let a): return .unary(function, a.mergingScales())
    case .binary(.maximum, .const(let low), .binary(.minimum, .const(let high), let a)) where low <= high:
      return .max(
        .const(low), .min(.const(high), a.mergingScales().withoutLimits(outside: low...high)))
    case .binary(let function, let a, let b):
      return .binary(function, a.mergingScales(), b.mergingScales())
    case .select(let c, let a, let b):
      return .select(c.mergingScales(), a.mergingScales(), b.mergingScales())
    }
  }

  /// What is inside of limits that lie outside of the range it is kept within anyway.
  private func withoutLimits(outside range: ClosedRange<Double>) -> ScalarExpr {
    switch self {
    case .binary(.maximum, let a, .const(let limit)) where limit <= range.lowerBound:
      return a.withoutLimits(outside: range)
    case .binary(.minimum, let a, .const(let limit)) where limit >= range.upperBound:
      return a.withoutLimits(outside: range)
    default: return self
    }
  }
}

extension BinaryFunction {
  fileprivate var isLimit: Bool { self == .maximum || self == .minimum }
}
