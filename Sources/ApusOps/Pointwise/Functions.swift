// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The negative.
public struct Neg: PlainPointwiseOperator {
  public static let name = "Neg"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.negate, .input(0)) }
}

/// The magnitude.
public struct Abs: PlainPointwiseOperator {
  public static let name = "Abs"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.absolute, .input(0)) }
}

/// -1, 0 or 1 by the sign.
public struct Sign: PlainPointwiseOperator {
  public static let name = "Sign"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.sign, .input(0)) }
}

/// One divided by the element.
public struct Reciprocal: PlainPointwiseOperator {
  public static let name = "Reciprocal"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.reciprocal, .input(0)) }
}

/// The square root.
public struct Sqrt: PlainPointwiseOperator {
  public static let name = "Sqrt"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.squareRoot, .input(0)) }
}

/// The exponential.
public struct Exp: PlainPointwiseOperator {
  public static let name = "Exp"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.exponential, .input(0)) }
}

/// The natural logarithm.
public struct Log: PlainPointwiseOperator {
  public static let name = "Log"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.logarithm, .input(0)) }
}

/// The sine.
public struct Sin: PlainPointwiseOperator {
  public static let name = "Sin"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.sine, .input(0)) }
}

/// The cosine.
public struct Cos: PlainPointwiseOperator {
  public static let name = "Cos"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.cosine, .input(0)) }
}

/// The tangent.
public struct Tan: PlainPointwiseOperator {
  public static let name = "Tan"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.tangent, .input(0)) }
}

/// The arc sine.
public struct Asin: PlainPointwiseOperator {
  public static let name = "Asin"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.arcSine, .input(0)) }
}

/// The arc cosine.
public struct Acos: PlainPointwiseOperator {
  public static let name = "Acos"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.arcCosine, .input(0)) }
}

/// The arc tangent.
public struct Atan: PlainPointwiseOperator {
  public static let name = "Atan"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.arcTangent, .input(0)) }
}

/// The hyperbolic sine.
public struct Sinh: PlainPointwiseOperator {
  public static let name = "Sinh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.hyperbolicSine, .input(0)) }
}

/// The hyperbolic cosine.
public struct Cosh: PlainPointwiseOperator {
  public static let name = "Cosh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.hyperbolicCosine, .input(0)) }
}

/// The hyperbolic tangent.
public struct Tanh: PlainPointwiseOperator {
  public static let name = "Tanh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.hyperbolicTangent, .input(0)) }
}

/// The inverse hyperbolic sine.
public struct Asinh: PlainPointwiseOperator {
  public static let name = "Asinh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.inverseHyperbolicSine, .input(0)) }
}

/// The inverse hyperbolic cosine.
public struct Acosh: PlainPointwiseOperator {
  public static let name = "Acosh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .unary(.inverseHyperbolicCosine, .input(0))
  }
}

/// The inverse hyperbolic tangent.
public struct Atanh: PlainPointwiseOperator {
  public static let name = "Atanh"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .unary(.inverseHyperbolicTangent, .input(0))
  }
}

/// The error function.
public struct Erf: PlainPointwiseOperator {
  public static let name = "Erf"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.errorFunction, .input(0)) }
}

/// Rounded down.
public struct Floor: PlainPointwiseOperator {
  public static let name = "Floor"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.floor, .input(0)) }
}

/// Rounded up.
public struct Ceil: PlainPointwiseOperator {
  public static let name = "Ceil"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.ceiling, .input(0)) }
}

/// Rounded to the nearest whole number, ties to even.
public struct Round: PlainPointwiseOperator {
  public static let name = "Round"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.round, .input(0)) }
}

/// Whether the element is not a number.
public struct IsNaN: PlainPointwiseOperator {
  public static let name = "IsNaN"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.isNaN, .input(0)) }
}

/// Whether the element is infinite, of the signs asked for.
public struct IsInf: PointwiseOperator, PermutableOperator {
  public static let name = "IsInf"
  public var detectNegative: Bool
  public var detectPositive: Bool

  public init(detectNegative: Bool = true, detectPositive: Bool = true) {
    self.detectNegative = detectNegative
    self.detectPositive = detectPositive
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    detectNegative = try attributes.bool("detectNegative", true)
    detectPositive = try attributes.bool("detectPositive", true)
  }

  public var attributes: Attributes {
    ["detectNegative": .bool(detectNegative), "detectPositive": .bool(detectPositive)]
  }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    let isInfinite = ScalarExpr.unary(.isInfinite, .input(0))
    if detectNegative && detectPositive { return isInfinite }
    if !detectNegative && !detectPositive { return .binary(.logicalAnd, isInfinite, .const(0)) }
    let sign = ScalarExpr.binary(detectPositive ? .greater : .less, .input(0), .const(0))
    return .binary(.logicalAnd, isInfinite, sign)
  }
}
