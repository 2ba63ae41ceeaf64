// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Short names for building the expressions below.
private let x = ScalarExpr.input(0)
private func greater(_ a: ScalarExpr, _ b: ScalarExpr) -> ScalarExpr { .binary(.greater, a, b) }
/// `exp(e) - 1` for arguments that are only used where they are negative.
private func expMinusOne(_ e: ScalarExpr) -> ScalarExpr {
  .unary(.exponential, .min(e, .const(0))) - .const(1)
}

/// The element, zero when negative.
public struct Relu: PlainPointwiseOperator {
  public static let name = "Relu"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .max(x, .const(0)) }
}

/// The logistic function.
public struct Sigmoid: PlainPointwiseOperator {
  public static let name = "Sigmoid"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.sigmoid, x) }
}

/// `log(1 + exp(x))`.
public struct Softplus: PlainPointwiseOperator {
  public static let name = "Softplus"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.softplus, x) }
}

/// `x / (1 + |x|)`.
public struct Softsign: PlainPointwiseOperator {
  public static let name = "Softsign"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { x / (.unary(.absolute, x) + .const(1)) }
}

/// `x * tanh(softplus(x))`.
public struct Mish: PlainPointwiseOperator {
  public static let name = "Mish"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    x * .unary(.hyperbolicTangent, .unary(.softplus, x))
  }
}

/// `x * max(0, min(1, x / 6 + 0.5))`.
public struct HardSwish: PlainPointwiseOperator {
  public static let name = "HardSwish"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    x * .max(.min(x * .const(1.0 / 6) + .const(0.5), .const(1)), .const(0))
  }
}

/// The element, multiplied by the slope operand when negative.
public struct PRelu: PlainPointwiseOperator {
  public static let name = "PRelu"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .select(.less(x, .const(0)), x * .input(1), x)
  }
}

/// The element, multiplied by `alpha` when negative.
public struct LeakyRelu: PointwiseOperator, PermutableOperator {
  public static let name = "LeakyRelu"
  public var alpha: Double

  public init(alpha: Double = 0.01) {
    self.alpha = alpha
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 0.01)
  }

  public var attributes: Attributes { ["alpha": .float(alpha)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .select(.less(x, .const(0)), x * .const(alpha), x)
  }
}

/// The element, `alpha * (exp(x) - 1)` when negative.
public struct Elu: PointwiseOperator, PermutableOperator {
  public static let name = "Elu"
  public var alpha: Double

  public init(alpha: Double = 1) {
    self.alpha = alpha
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 1)
  }

  public var attributes: Attributes { ["alpha": .float(alpha)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .select(.less(x, .const(0)), expMinusOne(x) * .const(alpha), x)
  }
}

/// The scaled exponential linear unit.
public struct Selu: PointwiseOperator, PermutableOperator {
  public static let name = "Selu"
  public var alpha: Double
  public var gamma: Double

  public init(alpha: Double = 1.67326319217681884765625, gamma: Double = 1.05070102214813232421875)
  {
    self.alpha = alpha
    self.gamma = gamma
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 1.67326319217681884765625)
    gamma = try attributes.float("gamma", 1.05070102214813232421875)
  }

  public var attributes: Attributes { ["alpha": .float(alpha), "gamma": .float(gamma)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .select(greater(x, .const(0)), x, expMinusOne(x) * .const(alpha)) * .const(gamma)
  }
}

/// `max(0, x) + min(0, alpha * (exp(x / alpha) - 1))`.
public struct Celu: PointwiseOperator, PermutableOperator {
  public static let name = "Celu"
  public var alpha: Double

  public init(alpha: Double = 1) {
    self.alpha = alpha
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 1)
  }

  public var attributes: Attributes { ["alpha": .float(alpha)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .max(x, .const(0))
      + .min(.const(alpha) * (.unary(.exponential, x / .const(alpha)) - .const(1)), .const(0))
  }
}

/// The element when greater than `alpha`, else zero.
public struct ThresholdedRelu: PointwiseOperator, PermutableOperator {
  public static let name = "ThresholdedRelu"
  public var alpha: Double

  public init(alpha: Double = 1) {
    self.alpha = alpha
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 1)
  }

  public var attributes: Attributes { ["alpha": .float(alpha)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .select(greater(x, .const(alpha)), x, .const(0))
  }
}

/// `max(0, min(1, alpha * x + beta))`.
public struct HardSigmoid: PointwiseOperator, PermutableOperator {
  public static let name = "HardSigmoid"
  public var alpha: Double
  public var beta: Double

  public init(alpha: Double = 0.2, beta: Double = 0.5) {
    self.alpha = alpha
    self.beta = beta
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 0.2)
    beta = try attributes.float("beta", 0.5)
  }

  public var attributes: Attributes { ["alpha": .float(alpha), "beta": .float(beta)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .max(.min(x * .const(alpha) + .const(beta), .const(1)), .const(0))
  }
}

/// `x * sigmoid(alpha * x)`.
public struct Swish: PointwiseOperator, PermutableOperator {
  public static let name = "Swish"
  public var alpha: Double

  public init(alpha: Double = 1) {
    self.alpha = alpha
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    alpha = try attributes.float("alpha", 1)
  }

  public var attributes: Attributes { ["alpha": .float(alpha)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    x * .unary(.sigmoid, alpha == 1 ? x : x * .const(alpha))
  }
}

/// The element moved towards zero by `bias`; zero within `lambd` of zero.
public struct Shrink: PointwiseOperator, PermutableOperator {
  public static let name = "Shrink"
  public var bias: Double
  public var lambd: Double

  public init(bias: Double = 0, lambd: Double = 0.5) {
    self.bias = bias
    self.lambd = lambd
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    bias = try attributes.float("bias", 0)
    lambd = try attributes.float("lambd", 0.5)
  }

  public var attributes: Attributes { ["bias": .float(bias), "lambd": .float(lambd)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    let whole = inputs.first.map { !$0.isFloat } ?? false
    let value: ScalarExpr = whole ? .cast(x, .float64) : x
    let result = ScalarExpr.select(
      .less(value, .const(-lambd)), value + .const(bias),
      .select(greater(value, .const(lambd)), value - .const(bias), .const(0)))
    return whole ? .cast(result, inputs[0]) : result
  }
}

/// The Gaussian error linear unit, exactly or by its tanh approximation.
public struct Gelu: PointwiseOperator, PermutableOperator {
  public static let name = "Gelu"
  /// Whether the tanh approximation is meant.
  public var approximate: Bool

  public init(approximate: Bool = false) { self.approximate = approximate }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    approximate = try attributes.bool("approximate", false)
  }

  public var attributes: Attributes { ["approximate": .bool(approximate)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    guard approximate else {
      let erf = ScalarExpr.unary(.errorFunction, x * .const(0.70710678118654752))
      return (x * .const(0.5)) * (erf + .const(1))
    }
    let inner = (x + .const(0.044715) * (x * x * x)) * .const(0.79788456080286536)
    return (x * .const(0.5)) * (.unary(.hyperbolicTangent, inner) + .const(1))
  }
}
