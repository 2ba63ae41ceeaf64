// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The sum.
public struct Add: PlainPointwiseOperator, ShapeValueOperator {
  public static let name = "Add"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) + .input(1) }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    PointwiseReference.symbolic(inputs) { $0 + $1 }
  }
}

/// The difference.
public struct Sub: PlainPointwiseOperator, ShapeValueOperator {
  public static let name = "Sub"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) - .input(1) }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    PointwiseReference.symbolic(inputs) { $0 - $1 }
  }
}

/// The product.
public struct Mul: PlainPointwiseOperator, ShapeValueOperator {
  public static let name = "Mul"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) * .input(1) }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    PointwiseReference.symbolic(inputs) { $0 * $1 }
  }
}

/// The quotient; integers truncate towards zero.
public struct Div: PlainPointwiseOperator, ShapeValueOperator {
  public static let name = "Div"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) / .input(1) }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    PointwiseReference.symbolic(inputs) { a, b in
      if let x = a.value, let y = b.value {
        return y == 0 || (y == -1 && x == .min) ? nil : Dim(x / y)
      }
      guard let divisor = b.value, divisor > 0 else { return nil }
      return a.floorDivided(by: b)
    }
  }
}

/// The remainder: with the sign of the divisor, or of the dividend when `fmod`.
public struct Mod: PointwiseOperator, PermutableOperator {
  public static let name = "Mod"
  /// Whether the result has the sign of the dividend, as C's `fmod`.
  public var fmod: Bool

  public init(fmod: Bool = false) { self.fmod = fmod }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    fmod = try attributes.bool("fmod", false)
  }

  public var attributes: Attributes { ["fmod": .bool(fmod)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(fmod ? .remainder : .floorModulo, .input(0), .input(1))
  }
}

/// The power; the result has the type of the base whatever the exponent's type is.
public struct Pow: PlainPointwiseOperator {
  public static let name = "Pow"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    guard inputs.count == 2, inputs[0] != inputs[1] else {
      return .binary(.power, .input(0), .input(1))
    }
    if inputs[1].isFloat && !inputs[0].isFloat {
      return .cast(
        .binary(.power, .cast(.input(0), .float64), .cast(.input(1), .float64)), inputs[0])
    }
    return .binary(.power, .input(0), .cast(.input(1), inputs[0]))
  }
}

/// The larger of two; NaN if either is.
public struct Max: PlainPointwiseOperator {
  public static let name = "Max"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .max(.input(0), .input(1)) }
}

/// The smaller of two; NaN if either is.
public struct Min: PlainPointwiseOperator {
  public static let name = "Min"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .min(.input(0), .input(1)) }
}
