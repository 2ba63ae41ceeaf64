// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The element limited to at least operand 1 and at most operand 2, either of which may be omitted.
public struct Clip: PlainPointwiseOperator {
  public static let name = "Clip"
  public init() {}

  /// The expression for leading operands that are all given.
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    expression(has: inputs.map { _ in true })
  }

  /// The expression over the operands that are given; positions are those of the node.
  package func expression(has: [Bool]) -> ScalarExpr {
    var result = ScalarExpr.input(0)
    if has.count > 1, has[1] { result = .max(result, .input(1)) }
    if has.count > 2, has[2] { result = .min(result, .input(2)) }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    var types = [try inputs.tensor(0)]
    for index in 1..<max(1, inputs.count) where inputs.has(index) {
      types.append(try inputs.tensor(index))
    }
    let dataTypes = types.map(\.dataType)
    guard dataTypes.allSatisfy({ $0 == dataTypes[0] }) else {
      throw ApusError(.typeMismatch, "Clip needs operands of one type, not \(dataTypes)")
    }
    _ = try PointwiseReference.resultType(.input(0), dataTypes)
    return [typed(dataTypes[0], try PointwiseReference.dims(types))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    var tensors: [Tensor] = []
    var has: [Bool] = []
    for index in inputs.indices.prefix(3) {
      let operand = try inputs.optional(index)
      guard operand == nil || operand?.dataType == x.dataType else {
        throw ApusError(.typeMismatch, "Clip needs operands of one type")
      }
      has.append(operand != nil)
      if let operand {
        tensors.append(operand)
      } else {
        tensors.append(try Tensor(x.dataType, shape: []))
      }
    }
    let type = try PointwiseReference.resultType(.input(0), tensors.map(\.dataType))
    return [.tensor(try PointwiseReference.evaluate(expression(has: has), type, tensors))]
  }
}

/// Conversion to another element type, to and from strings included.
public struct Cast: PointwiseOperator, PermutableOperator, ShapeValueOperator {
  public static let name = "Cast"
  /// The element type of the result.
  public var to: DataType
  /// Whether values beyond the range of an 8-bit float become its largest value.
  public var saturate: Bool

  /// Where a number between two powers of two goes that becomes one of them (`float8e8m0`).
  public enum PowerRounding: String, Sendable, Hashable, CaseIterable { case up, down, nearest }
  public var powerRounding: PowerRounding

  public init(to: DataType, saturate: Bool = true, powerRounding: PowerRounding = .up) {
    self.to = to
    self.saturate = saturate
    self.powerRounding = powerRounding
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    to = try attributes.type("to")
    saturate = try attributes.bool("saturate", true)
    powerRounding = try attributes.choice("power_rounding", PowerRounding.up)
  }

  public var attributes: Attributes {
    var result: Attributes = ["to": .type(to)]
    if !saturate { result["saturate"] = .bool(false) }
    if powerRounding != .up { result["power_rounding"] = .string(powerRounding.rawValue) }
    return result
  }

  public func body(_ inputs: [DataType]) -> ScalarExpr { .cast(.input(0), to) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [typed(to, try inputs.tensor(0).dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    if x.dataType == to { return [.tensor(x)] }
    if to == .string { return [.tensor(try Tensor(strings: Self.texts(x), shape: x.shape))] }
    if x.dataType == .string { return [.tensor(try Self.parsed(x, to, saturate))] }
    guard x.dataType.isComplex == to.isComplex else {
      throw ApusError(.typeMismatch, "\(x.dataType) cannot be cast to \(to)")
    }
    if to == .float8e8m0, powerRounding != .up {
      let powers = x.doubles().map { number in
        let isUpper = powerRounding == .nearest && number.significand >= 1.5
        return number > 0 && number.isFinite
          ? Double(sign: .plus, exponent: number.exponent + (isUpper ? 1 : 0), significand: 1) : number
      }
      return [.tensor(try Tensor(powers, to, shape: x.shape))]
    }
    return [.tensor(try x.converted(to: to, saturate: saturate))]
  }

  private static func texts(_ x: Tensor) throws(ApusError) -> [String] {
    if x.dataType.isComplex { throw ApusError(.typeMismatch, "\(x.dataType) cannot become text") }
    switch x.dataType {
    case .uint64: return x.integers().map { String(UInt64(bitPattern: $0)) }
    case .bool: return x.integers().map { $0 == 0 ? "False" : "True" }
    case .float64: return x.doubles().map(text)
    default: break
    }
    guard x.dataType.isFloat else { return x.integers().map { String($0) } }
    return x.doubles().map { $0.isFinite ? "\(Float($0))" : text($0) }
  }

  private static func text(_ value: Double) -> String {
    value.isNaN ? "NaN" : value.isInfinite ? (value > 0 ? "INF" : "-INF") : "\(value)"
  }

  private static func parsed(_ x: Tensor, _ type: DataType, _ saturate: Bool) throws(ApusError)
    -> Tensor
  {
    func wrong(_ text: String) -> ApusError {
      ApusError(.execution, "the text '\(text)' is no number of type \(type)")
    }
    if type.isInteger || type == .bool {
      var values: [Int64] = []
      for text in x.strings {
        if let value = Int64(text) {
          values.append(value)
        } else if let value = UInt64(text), type == .uint64 {
          values.append(Int64(bitPattern: value))
        } else if let value = Double(text.lowercased()) {
          values.append(Int64(clamping: value))
        } else if type == .bool, ["true", "false"].contains(text.lowercased()) {
          values.append(text.lowercased() == "true" ? 1 : 0)
        } else {
          throw wrong(text)
        }
      }
      return try Tensor(values, type, shape: x.shape)
    }
    guard type.isFloat else { throw ApusError(.typeMismatch, "text cannot be cast to \(type)") }
    var values: [Double] = []
    for text in x.strings {
      guard let value = Double(text.lowercased()) else { throw wrong(text) }
      values.append(value)
    }
    return try Tensor(values, type, shape: x.shape, saturate: saturate)
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    to == .int64 || to == .int32 ? [PointwiseReference.integerDims(inputs, 0)] : [nil]
  }
}

/// Its operand, of any kind; for graphs whose results are their inputs.
public struct Identity: PlainPointwiseOperator, ShapeValueOperator {
  public static let name = "Identity"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard inputs.has(0), let type = inputs.types[0] else {
      throw ApusError(.typeMismatch, "operand 0 is missing")
    }
    return [type]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    guard let first = inputs.first, let value = first else {
      throw ApusError(.typeMismatch, "operand 0 is missing")
    }
    return [value]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    [PointwiseReference.integerDims(inputs, 0)]
  }
}
