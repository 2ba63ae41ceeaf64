// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Whether both are true.
public struct And: PlainPointwiseOperator {
  public static let name = "And"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.logicalAnd, .input(0), .input(1))
  }
}

/// Whether at least one is true.
public struct Or: PlainPointwiseOperator {
  public static let name = "Or"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .binary(.logicalOr, .input(0), .input(1)) }
}

/// Whether exactly one is true.
public struct Xor: PlainPointwiseOperator {
  public static let name = "Xor"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.logicalXor, .input(0), .input(1))
  }
}

/// The bits set in both.
public struct BitwiseAnd: PlainPointwiseOperator {
  public static let name = "BitwiseAnd"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.bitwiseAnd, .input(0), .input(1))
  }
}

/// The bits set in either.
public struct BitwiseOr: PlainPointwiseOperator {
  public static let name = "BitwiseOr"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .binary(.bitwiseOr, .input(0), .input(1)) }
}

/// The bits set in exactly one.
public struct BitwiseXor: PlainPointwiseOperator {
  public static let name = "BitwiseXor"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.bitwiseXor, .input(0), .input(1))
  }
}

/// Whether the first is less.
public struct Less: PlainPointwiseOperator {
  public static let name = "Less"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .binary(.less, .input(0), .input(1)) }
}

/// Whether the first is at most the second.
public struct LessOrEqual: PlainPointwiseOperator {
  public static let name = "LessOrEqual"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.lessOrEqual, .input(0), .input(1))
  }
}

/// Whether the first is greater.
public struct Greater: PlainPointwiseOperator {
  public static let name = "Greater"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .binary(.greater, .input(0), .input(1)) }
}

/// Whether the first is at least the second.
public struct GreaterOrEqual: PlainPointwiseOperator {
  public static let name = "GreaterOrEqual"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(.greaterOrEqual, .input(0), .input(1))
  }
}

/// The opposite truth value.
public struct Not: PlainPointwiseOperator {
  public static let name = "Not"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.logicalNot, .input(0)) }
}

/// All bits flipped.
public struct BitwiseNot: PlainPointwiseOperator {
  public static let name = "BitwiseNot"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .unary(.bitwiseNot, .input(0)) }
}

/// Bits shifted; those that leave are lost and zeros (copies of the sign to the right) enter.
public struct BitShift: PointwiseOperator, PermutableOperator {
  public static let name = "BitShift"
  /// Where the bits go.
  public enum Direction: String, Sendable { case left, right }
  public var direction: Direction

  public init(direction: Direction = .left) { self.direction = direction }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    direction = try attributes.choice("direction", .left)
  }

  public var attributes: Attributes { ["direction": .string(direction.rawValue)] }

  public func body(_ inputs: [DataType]) -> ScalarExpr {
    .binary(direction == .left ? .shiftLeft : .shiftRight, .input(0), .input(1))
  }
}

/// Whether the two are equal; also defined on strings.
public struct Equal: PlainPointwiseOperator {
  public static let name = "Equal"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .binary(.equal, .input(0), .input(1)) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let types = [try inputs.tensor(0), try inputs.tensor(1)]
    guard types[0].dataType == types[1].dataType, !types[0].dataType.isComplex else {
      throw ApusError(.typeMismatch, "\(types[0]) and \(types[1]) cannot be compared")
    }
    return [typed(.bool, try PointwiseReference.dims(types))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let a = try inputs.required(0)
    let b = try inputs.required(1)
    guard a.dataType == .string, b.dataType == .string else {
      let types = [a.dataType, b.dataType]
      let type = try PointwiseReference.resultType(body(types), types)
      return [.tensor(try PointwiseReference.evaluate(body(types), type, [a, b]))]
    }
    let shape = try Broadcasting.shape([a.shape, b.shape])
    let x = Broadcasting.expand(a.strings, a.shape, to: shape)
    let y = Broadcasting.expand(b.strings, b.shape, to: shape)
    return [.tensor(try Tensor(zip(x, y).map { $0 == $1 ? Int64(1) : 0 }, .bool, shape: shape))]
  }
}

/// The second operand where the first is true, else the third; of any element type.
public struct Where: PlainPointwiseOperator {
  public static let name = "Where"
  public init() {}
  public func body(_ inputs: [DataType]) -> ScalarExpr { .select(.input(0), .input(1), .input(2)) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let types = [try inputs.tensor(0), try inputs.tensor(1), try inputs.tensor(2)]
    try Self.check(types.map(\.dataType))
    return [typed(types[1].dataType, try PointwiseReference.dims(types))]
  }

  private static func check(_ types: [DataType]) throws(ApusError) {
    guard types[0] == .bool, types[1] == types[2] else {
      throw ApusError(
        .typeMismatch, "Where takes bool and two operands of one type, not \(types)")
    }
  }

  /// Elements are moved, not converted, so that every type works.
  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let tensors = [try inputs.required(0), try inputs.required(1), try inputs.required(2)]
    try Self.check(tensors.map(\.dataType))
    let shape = try Broadcasting.shape(tensors.map(\.shape))
    let count = try Tensor.checkedCount(shape)
    let condition = Broadcasting.expand(tensors[0].integers(), tensors[0].shape, to: shape)
    var result = try ElementBuffer(tensors[1].dataType, shape: shape)
    for choice in 0...1 {
      let source = tensors[1 + choice]
      let places = Broadcasting.expand(Array(0..<source.count), source.shape, to: shape)
      let chosen = (0..<count).filter { (condition[$0] == 0) == (choice == 1) }
      result.copy(from: source, count: chosen.count) { (chosen[$0], places[chosen[$0]]) }
    }
    return [.tensor(try result.finished())]
  }
}
