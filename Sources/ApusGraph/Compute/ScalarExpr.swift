// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

/// An expression over scalars: what one element of a pointwise result is, given the elements of the
/// operands at the same place.
///
/// The tree is the single definition of pointwise arithmetic. The reference evaluator, the x86
/// emitter and later the CUDA printer all read it; adding a pointwise operator adds no kernel code.
/// Values are floats, integers or booleans; the type of a node follows from its operands
/// (`ScalarExpr.dataType(inputs:)`), comparisons give booleans.
public indirect enum ScalarExpr: Hashable, Sendable {
  /// The element of operand `n`.
  case input(Int)
  /// A constant, of the type of the expression it stands in.
  case const(Double)
  /// A function of one value.
  case unary(UnaryFunction, ScalarExpr)
  /// A function of two values.
  case binary(BinaryFunction, ScalarExpr, ScalarExpr)
  /// `condition ? then : else`.
  case select(ScalarExpr, ScalarExpr, ScalarExpr)
  /// Conversion to another element type: floats to integers truncate, anything to bool tests `!= 0`.
  case cast(ScalarExpr, DataType)
}

/// Functions of one value.
public enum UnaryFunction: String, Hashable, Sendable, CaseIterable {
  case negate = "neg"
  case absolute = "abs"
  case sign
  case reciprocal = "recip"
  case squareRoot = "sqrt"
  case reciprocalSquareRoot = "rsqrt"
  case exponential = "exp"
  case logarithm = "log"
  case sine = "sin"
  case cosine = "cos"
  case tangent = "tan"
  case arcSine = "asin"
  case arcCosine = "acos"
  case arcTangent = "atan"
  case hyperbolicSine = "sinh"
  case hyperbolicCosine = "cosh"
  case hyperbolicTangent = "tanh"
  case inverseHyperbolicSine = "asinh"
  case inverseHyperbolicCosine = "acosh"
  case inverseHyperbolicTangent = "atanh"
  case errorFunction = "erf"
  /// The logistic function `1 / (1 + exp(-x))`, computed without overflow.
  case sigmoid
  /// `log(1 + exp(x))`, computed without overflow.
  case softplus
  case floor
  case ceiling = "ceil"
  /// To the nearest whole number, ties to even.
  case round
  case truncate = "trunc"
  case isNaN = "isnan"
  case isInfinite = "isinf"
  case logicalNot = "not"
  case bitwiseNot = "bitnot"
}

/// Functions of two values.
public enum BinaryFunction: String, Hashable, Sendable, CaseIterable {
  case add
  case subtract = "sub"
  case multiply = "mul"
  /// Quotient; integers truncate towards zero.
  case divide = "div"
  /// The remainder with the sign of the divisor (Python's `%`).
  case floorModulo = "mod"
  /// The remainder with the sign of the dividend (C's `fmod`).
  case remainder = "fmod"
  case power = "pow"
  /// The smaller; NaN if either is.
  case minimum = "min"
  /// The larger; NaN if either is.
  case maximum = "max"
  case equal = "eq"
  case notEqual = "ne"
  case less = "lt"
  case lessOrEqual = "le"
  case greater = "gt"
  case greaterOrEqual = "ge"
  case logicalAnd = "and"
  case logicalOr = "or"
  case logicalXor = "xor"
  case bitwiseAnd = "bitand"
  case bitwiseOr = "bitor"
  case bitwiseXor = "bitxor"
  case shiftLeft = "shl"
  case shiftRight = "shr"
  case arcTangent2 = "atan2"

  /// Whether the result is a boolean whatever the operands are.
  public var isPredicate: Bool {
    switch self {
    case .equal, .notEqual, .less, .lessOrEqual, .greater, .greaterOrEqual, .logicalAnd,
      .logicalOr, .logicalXor:
      true
    default: false
    }
  }
}

extension ScalarExpr {
  public static func + (a: ScalarExpr, b: ScalarExpr) -> ScalarExpr { .binary(.add, a, b) }
  public static func - (a: ScalarExpr, b: ScalarExpr) -> ScalarExpr { .binary(.subtract, a, b) }
  public static func * (a: ScalarExpr, b: ScalarExpr) -> ScalarExpr { .binary(.multiply, a, b) }
  public static func / (a: ScalarExpr, b: ScalarExpr) -> ScalarExpr { .binary(.divide, a, b) }
  /// The smaller of two values.
  public static func min(_ a: ScalarExpr, _ b: ScalarExpr) -> ScalarExpr { .binary(.minimum, a, b) }
  /// The larger of two values.
  public static func max(_ a: ScalarExpr, _ b: ScalarExpr) -> ScalarExpr { .binary(.maximum, a, b) }
  /// `a < b`.
  public static func less(_ a: ScalarExpr, _ b: ScalarExpr) -> ScalarExpr { .binary(.less, a, b) }

  /// The number of operands: one more than the largest `input` index.
  public var inputCount: Int {
    switch self {
    case .input(let index): index + 1
    case .const: 0
    case .unary(_, let a), .cast(let a, _): a.inputCount
    case .binary(_, let a, let b): Swift.max(a.inputCount, b.inputCount)
    case .select(let c, let a, let b):
      Swift.max(c.inputCount, Swift.max(a.inputCount, b.inputCount))
    }
  }

  /// The number of nodes.
  public var nodeCount: Int {
    switch self {
    case .input, .const: 1
    case .unary(_, let a), .cast(let a, _): 1 + a.nodeCount
    case .binary(_, let a, let b): 1 + a.nodeCount + b.nodeCount
    case .select(let c, let a, let b): 1 + c.nodeCount + a.nodeCount + b.nodeCount
    }
  }

  /// The expression with operand `n` replaced by `replacement(n)`.
  public func substituting(_ replacement: (Int) -> ScalarExpr) -> ScalarExpr {
    switch self {
    case .input(let index): replacement(index)
    case .const: self
    case .unary(let function, let a): .unary(function, a.substituting(replacement))
    case .cast(let a, let type): .cast(a.substituting(replacement), type)
    case .binary(let function, let a, let b):
      .binary(function, a.substituting(replacement), b.substituting(replacement))
    case .select(let c, let a, let b):
      .select(
        c.substituting(replacement), a.substituting(replacement), b.substituting(replacement))
    }
  }

  /// The expression with every occurrence of a part replaced.
  public func replacing(_ part: ScalarExpr, with other: ScalarExpr) -> ScalarExpr {
    if self == part { return other }
    switch self {
    case .input, .const: return self
    case .unary(let function, let a): return .unary(function, a.replacing(part, with: other))
    case .cast(let a, let type): return .cast(a.replacing(part, with: other), type)
    case .binary(let function, let a, let b):
      return .binary(function, a.replacing(part, with: other), b.replacing(part, with: other))
    case .select(let c, let a, let b):
      return .select(
        c.replacing(part, with: other), a.replacing(part, with: other), b.replacing(part, with: other))
    }
  }

  /// How often operand `n` occurs, for each `n`.
  public func useCounts() -> [Int: Int] {
    var counts: [Int: Int] = [:]
    visitInputs { counts[$0, default: 0] += 1 }
    return counts
  }

  /// Calls `visit` for every occurrence of an operand.
  public func visitInputs(_ visit: (Int) -> Void) {
    switch self {
    case .input(let index): visit(index)
    case .const: break
    case .unary(_, let a), .cast(let a, _): a.visitInputs(visit)
    case .binary(_, let a, let b):
      a.visitInputs(visit)
      b.visitInputs(visit)
    case .select(let c, let a, let b):
      c.visitInputs(visit)
      a.visitInputs(visit)
      b.visitInputs(visit)
    }
  }

  /// The element type of the result, given the operands' types; nil when operands of one function
  /// have different types (constants adapt to the other operand).
  public func dataType(inputs: [DataType]) -> DataType? {
    switch self {
    case .input(let index): return index < inputs.count ? inputs[index] : nil
    case .const: return nil
    case .unary(let function, let a):
      let type = a.dataType(inputs: inputs)
      switch function {
      case .isNaN, .isInfinite, .logicalNot: return .bool
      default: return type
      }
    case .cast(_, let type): return type
    case .binary(let function, let a, let b):
      if function.isPredicate { return .bool }
      return Self.common(a, b, inputs)
    case .select(_, let a, let b): return Self.common(a, b, inputs)
    }
  }

  private static func common(_ a: ScalarExpr, _ b: ScalarExpr, _ inputs: [DataType]) -> DataType? {
    switch (a.dataType(inputs: inputs), b.dataType(inputs: inputs)) {
    case (let x?, let y?): x == y ? x : nil
    case (let x?, nil): b.isConstant ? x : nil
    case (nil, let y?): a.isConstant ? y : nil
    case (nil, nil): nil
    }
  }

  /// Whether no operand occurs.
  public var isConstant: Bool { inputCount == 0 }
}

extension UnaryFunction {
  /// Whether generated kernels of every backend have code for it; the others are computed on their own.
  public var isInKernels: Bool {
    switch self {
    case .sine, .cosine, .tangent, .arcSine, .arcCosine, .arcTangent, .hyperbolicSine,
      .hyperbolicCosine, .inverseHyperbolicSine, .inverseHyperbolicCosine,
      .inverseHyperbolicTangent, .bitwiseNot:
      false
    default: true
    }
  }
}

extension BinaryFunction {
  /// Whether generated kernels of every backend have code for it.
  public var isInKernels: Bool {
    switch self {
    case .floorModulo, .remainder, .bitwiseAnd, .bitwiseOr, .bitwiseXor, .shiftLeft, .shiftRight,
      .arcTangent2:
      false
    default: true
    }
  }
}

extension ScalarExpr {
  /// Whether the expression or a part of it satisfies a condition.
  public func contains(where condition: (ScalarExpr) -> Bool) -> Bool {
    if condition(self) { return true }
    switch self {
    case .input, .const: return false
    case .unary(_, let a), .cast(let a, _): return a.contains(where: condition)
    case .binary(_, let a, let b):
      return a.contains(where: condition) || b.contains(where: condition)
    case .select(let c, let a, let b):
      return [c, a, b].contains { $0.contains(where: condition) }
    }
  }
}

extension ScalarExpr {
  /// Whether generated kernels have code for all functions in it, so that joining it to others gains.
  public var isInKernels: Bool {
    switch self {
    case .input, .const: true
    case .cast(let a, _): a.isInKernels
    case .unary(let function, let a): function.isInKernels && a.isInKernels
    case .binary(let function, let a, let b):
      function.isInKernels && a.isInKernels && b.isInKernels
    case .select(let c, let a, let b): c.isInKernels && a.isInKernels && b.isInKernels
    }
  }
}
