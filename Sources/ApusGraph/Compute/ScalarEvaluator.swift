// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The reference evaluation of a `ScalarExpr`: floats in double precision (rounded to the element
/// type after every function, as the operators of the unfused graph would), integers exactly.
///
/// Evaluation goes node by node over whole arrays, so its cost per element is a loop, not a tree walk.
package struct ScalarEvaluator {
  /// An array of elements in one of the two reference forms.
  package enum Elements {
    case real([Double], DataType)
    case whole([Int64], DataType)

    package var dataType: DataType {
      switch self {
      case .real(_, let type), .whole(_, let type): type
      }
    }

    /// The elements as double precision numbers.
    package var reals: [Double] {
      switch self {
      case .real(let values, _): values
      case .whole(let values, .uint64): values.map { Double(UInt64(bitPattern: $0)) }
      case .whole(let values, _): values.map(Double.init)
      }
    }

    /// The elements as integers; floats are truncated and clamped.
    package var wholes: [Int64] {
      switch self {
      case .real(let values, _): values.map { Int64(clamping: $0) }
      case .whole(let values, _): values
      }
    }
  }

  private let operands: [Elements]
  private let count: Int

  /// An evaluator over operands that all have `count` elements.
  package init(operands: [Elements], count: Int) {
    self.operands = operands
    self.count = count
  }

  /// The reference form of a tensor's elements.
  package static func elements(of tensor: Tensor) -> Elements {
    tensor.dataType.isFloat
      ? .real(tensor.doubles(), tensor.dataType) : .whole(tensor.integers(), tensor.dataType)
  }

  /// Evaluates the expression; `expected` is the type that constants on their own take.
  package func evaluate(_ expr: ScalarExpr, expected: DataType) throws(ApusError) -> Elements {
    switch expr {
    case .input(let index):
      guard index < operands.count else {
        throw ApusError(.internalError, "expression uses operand \(index) of \(operands.count)")
      }
      return operands[index]
    case .const(let value):
      return expected.isFloat
        ? .real(Array(repeating: Self.rounded(value, expected), count: count), expected)
        : .whole(Array(repeating: Int64(clamping: value), count: count), expected)
    case .unary(let function, let a):
      return try Self.apply(function, evaluate(a, expected: expected))
    case .binary(let function, let a, let b):
      let (x, y) = try pair(a, b, expected: expected)
      return try Self.apply(function, x, y)
    case .select(let c, let a, let b):
      let condition = try evaluate(c, expected: .bool).wholes
      let (x, y) = try pair(a, b, expected: expected)
      if case .real(let p, let type) = x {
        let q = y.reals
        return .real(condition.indices.map { condition[$0] != 0 ? p[$0] : q[$0] }, type)
      }
      let p = x.wholes
      let q = y.wholes
      return .whole(condition.indices.map { condition[$0] != 0 ? p[$0] : q[$0] }, x.dataType)
    case .cast(let a, let type):
      return Self.cast(try evaluate(a, expected: type), to: type)
    }
  }

  private func pair(_ a: ScalarExpr, _ b: ScalarExpr, expected: DataType) throws(ApusError)
    -> (Elements, Elements)
  {
    if a.isConstant && !b.isConstant {
      let y = try evaluate(b, expected: expected)
      return (try evaluate(a, expected: y.dataType), y)
    }
    let x = try evaluate(a, expected: expected)
    return (x, try evaluate(b, expected: x.dataType))
  }

  /// A double rounded to a float type and back.
  package static func rounded(_ value: Double, _ type: DataType) -> Double {
    switch type {
    case .float64: value
    case .float32: Double(Float(value))
    default:
      type.smallFloat.map { format in
        format.decode(format.encode(value, saturate: type.bitWidth <= 8))
      } ?? value
    }
  }

  private static func wrapped(_ value: Int64, _ type: DataType) -> Int64 {
    switch type {
    case .int32: Int64(Int32(truncatingIfNeeded: value))
    case .uint32: Int64(UInt32(truncatingIfNeeded: value))
    case .int16: Int64(Int16(truncatingIfNeeded: value))
    case .uint16: Int64(UInt16(truncatingIfNeeded: value))
    case .int8: Int64(Int8(truncatingIfNeeded: value))
    case .uint8: Int64(UInt8(truncatingIfNeeded: value))
    case .int4: (value << 60) >> 60
    case .uint4: value & 15
    case .int2: (value << 62) >> 62
    case .uint2: value & 3
    case .bool: value == 0 ? 0 : 1
    default: value
    }
  }

  private static func cast(_ value: Elements, to type: DataType) -> Elements {
    if type == .bool { return .whole(value.reals.map { $0 == 0 ? 0 : 1 }, .bool) }
    if type.isFloat { return .real(value.reals.map { rounded($0, type) }, type) }
    return .whole(value.wholes.map { wrapped($0, type) }, type)
  }

  private static func apply(_ function: UnaryFunction, _ x: Elements) throws(ApusError) -> Elements {
    switch x {
    case .real(let values, let type):
      switch function {
      case .isNaN: return .whole(values.map { $0.isNaN ? 1 : 0 }, .bool)
      case .isInfinite: return .whole(values.map { $0.isInfinite ? 1 : 0 }, .bool)
      case .logicalNot: return .whole(values.map { $0 == 0 ? 1 : 0 }, .bool)
      default:
        guard let body = realFunction(function) else { throw unsupported(function.rawValue, type) }
        return .real(values.map { rounded(body($0), type) }, type)
      }
    case .whole(let values, let type):
      switch function {
      case .negate: return .whole(values.map { wrapped(0 &- $0, type) }, type)
      case .absolute:
        let unsigned = type == .uint64
        return .whole(values.map { unsigned || $0 >= 0 ? $0 : wrapped(0 &- $0, type) }, type)
      case .sign:
        let unsigned = type == .uint64
        return .whole(values.map { $0 == 0 ? 0 : (unsigned || $0 > 0 ? 1 : -1) }, type)
      case .logicalNot: return .whole(values.map { $0 == 0 ? 1 : 0 }, .bool)
      case .bitwiseNot: return .whole(values.map { wrapped(~$0, type) }, type)
      case .floor, .ceiling, .round, .truncate: return x
      case .isNaN, .isInfinite: return .whole(values.map { _ in 0 }, .bool)
      default: throw unsupported(function.rawValue, type)
      }
    }
  }

  private static func unsupported(_ function: String, _ type: DataType) -> ApusError {
    ApusError(.typeMismatch, "'\(function)' is not defined for elements of type \(type)")
  }

  private static func realFunction(_ function: UnaryFunction) -> ((Double) -> Double)? {
    switch function {
    case .negate: { -$0 }
    case .absolute: { abs($0) }
    case .sign: { $0 > 0 ? 1 : ($0 < 0 ? -1 : $0) }
    case .reciprocal: { 1 / $0 }
    case .squareRoot: { $0.squareRoot() }
    case .reciprocalSquareRoot: { 1 / $0.squareRoot() }
    case .exponential: { exp($0) }
    case .logarithm: { log($0) }
    case .sine: { sin($0) }
    case .cosine: { cos($0) }
    case .tangent: { tan($0) }
    case .arcSine: { asin($0) }
    case .arcCosine: { acos($0) }
    case .arcTangent: { atan($0) }
    case .hyperbolicSine: { sinh($0) }
    case .hyperbolicCosine: { cosh($0) }
    case .hyperbolicTangent: { tanh($0) }
    case .inverseHyperbolicSine: { asinh($0) }
    case .inverseHyperbolicCosine: { acosh($0) }
    case .inverseHyperbolicTangent: { atanh($0) }
    case .errorFunction: { erf($0) }
    case .sigmoid: { $0 >= 0 ? 1 / (1 + exp(-$0)) : exp($0) / (1 + exp($0)) }
    case .softplus: { $0 > 0 ? $0 + log1p(exp(-$0)) : log1p(exp($0)) }
    case .floor: { $0.rounded(.down) }
    case .ceiling: { $0.rounded(.up) }
    case .round: { $0.rounded(.toNearestOrEven) }
    case .truncate: { $0.rounded(.towardZero) }
    case .isNaN, .isInfinite, .logicalNot, .bitwiseNot: nil
    }
  }

  private static func apply(_ function: BinaryFunction, _ x: Elements, _ y: Elements)
    throws(ApusError) -> Elements
  {
    if case .real(let a, let type) = x {
      let b = y.reals
      return try applyReal(function, a, b, type)
    }
    if case .real(let b, let type) = y { return try applyReal(function, x.reals, b, type) }
    return try applyWhole(function, x.wholes, y.wholes, x.dataType)
  }

  private static func applyReal(
    _ function: BinaryFunction, _ a: [Double], _ b: [Double], _ type: DataType
  ) throws(ApusError) -> Elements {
    func predicate(_ test: (Double, Double) -> Bool) -> Elements {
      .whole(a.indices.map { test(a[$0], b[$0]) ? 1 : 0 }, .bool)
    }
    func value(_ body: (Double, Double) -> Double) -> Elements {
      .real(a.indices.map { rounded(body(a[$0], b[$0]), type) }, type)
    }
    switch function {
    case .add: return value(+)
    case .subtract: return value(-)
    case .multiply: return value(*)
    case .divide: return value(/)
    case .floorModulo:
      return value { x, y in
        let r = fmod(x, y)
        return r != 0 && (r < 0) != (y < 0) ? r + y : r
      }
    case .remainder: return value(fmod)
    case .power: return value(pow)
    case .arcTangent2: return value(atan2)
    case .minimum: return value { $0.isNaN || $1.isNaN ? .nan : Swift.min($0, $1) }
    case .maximum: return value { $0.isNaN || $1.isNaN ? .nan : Swift.max($0, $1) }
    case .equal: return predicate(==)
    case .notEqual: return predicate(!=)
    case .less: return predicate(<)
    case .lessOrEqual: return predicate(<=)
    case .greater: return predicate(>)
    case .greaterOrEqual: return predicate(>=)
    case .logicalAnd: return predicate { $0 != 0 && $1 != 0 }
    case .logicalOr: return predicate { $0 != 0 || $1 != 0 }
    case .logicalXor: return predicate { ($0 != 0) != ($1 != 0) }
    case .bitwiseAnd, .bitwiseOr, .bitwiseXor, .shiftLeft, .shiftRight:
      throw unsupported(function.rawValue, type)
    }
  }

  private static func applyWhole(
    _ function: BinaryFunction, _ a: [Int64], _ b: [Int64], _ type: DataType
  ) throws(ApusError) -> Elements {
    let unsigned = type == .uint64
    func predicate(_ test: (Int64, Int64) -> Bool) -> Elements {
      .whole(a.indices.map { test(a[$0], b[$0]) ? 1 : 0 }, .bool)
    }
    func value(_ body: (Int64, Int64) -> Int64) -> Elements {
      .whole(a.indices.map { wrapped(body(a[$0], b[$0]), type) }, type)
    }
    func lessThan(_ x: Int64, _ y: Int64) -> Bool {
      unsigned ? UInt64(bitPattern: x) < UInt64(bitPattern: y) : x < y
    }
    switch function {
    case .add: return value { $0 &+ $1 }
    case .subtract: return value { $0 &- $1 }
    case .multiply: return value { $0 &* $1 }
    case .divide, .remainder, .floorModulo:
      guard !b.contains(0) else {
        throw ApusError(
          .execution, "integer division by zero", hint: "check the divisor's values in the input")
      }
      return value { divide($0, $1, function, unsigned: unsigned) }
    case .power: return value { power($0, $1) }
    case .minimum: return value { lessThan($1, $0) ? $1 : $0 }
    case .maximum: return value { lessThan($0, $1) ? $1 : $0 }
    case .equal: return predicate(==)
    case .notEqual: return predicate(!=)
    case .less: return predicate { lessThan($0, $1) }
    case .lessOrEqual: return predicate { !lessThan($1, $0) }
    case .greater: return predicate { lessThan($1, $0) }
    case .greaterOrEqual: return predicate { !lessThan($0, $1) }
    case .logicalAnd: return predicate { $0 != 0 && $1 != 0 }
    case .logicalOr: return predicate { $0 != 0 || $1 != 0 }
    case .logicalXor: return predicate { ($0 != 0) != ($1 != 0) }
    case .bitwiseAnd: return value { $0 & $1 }
    case .bitwiseOr: return value { $0 | $1 }
    case .bitwiseXor: return value { $0 ^ $1 }
    case .shiftLeft: return value { $1 < 0 || $1 > 63 ? 0 : $0 << $1 }
    case .shiftRight:
      return value { x, n in
        // Everything shifted out leaves the sign.
        if n < 0 || n > 63 { return unsigned || x >= 0 ? 0 : -1 }
        return unsigned ? Int64(bitPattern: UInt64(bitPattern: x) >> UInt64(n)) : x >> n
      }
    case .arcTangent2: throw unsupported(function.rawValue, type)
    }
  }

  private static func divide(_ x: Int64, _ y: Int64, _ function: BinaryFunction, unsigned: Bool)
    -> Int64
  {
    if unsigned {
      let (q, r) = UInt64(bitPattern: x).quotientAndRemainder(dividingBy: UInt64(bitPattern: y))
      return Int64(bitPattern: function == .divide ? q : r)
    }
    if y == -1 { return function == .divide ? 0 &- x : 0 }
    if function == .divide { return x / y }
    let r = x % y
    return function == .floorModulo && r != 0 && (r < 0) != (y < 0) ? r &+ y : r
  }

  private static func power(_ base: Int64, _ exponent: Int64) -> Int64 {
    if exponent < 0 { return base == 1 ? 1 : (base == -1 ? (exponent % 2 == 0 ? 1 : -1) : 0) }
    var result: Int64 = 1
    var factor = base
    var rest = exponent
    while rest > 0 {
      if rest & 1 == 1 { result = result &* factor }
      factor = factor &* factor
      rest >>= 1
    }
    return result
  }
}
