// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

extension Array where Element == RuntimeValue? {
  /// The sequence at position `index`.
  func sequence(_ index: Int) throws(ApusError) -> (items: [RuntimeValue], element: ValueType) {
    guard index < count, let value = self[index] else {
      throw ApusError(.typeMismatch, "operand \(index) is missing")
    }
    guard case .sequence(let items, let element) = value else {
      throw ApusError(.typeMismatch, "operand \(index) is \(value.type), expected a sequence")
    }
    return (items, element)
  }

  /// A position in a sequence: operand `index`, or `fallback` when omitted.
  func position(_ index: Int, count: Int, fallback: Int, within limit: Int) throws(ApusError) -> Int {
    guard let tensor = try optional(index) else {
      guard fallback >= 0 else { throw ApusError(.execution, "the sequence is empty") }
      return fallback
    }
    guard tensor.count == 1, tensor.dataType.isInteger else {
      throw ApusError(.typeMismatch, "a position must be one integer, it is \(tensor.type)")
    }
    let given = tensor.ints()[0]
    let place = given < 0 ? given &+ count : given
    guard place >= 0, place < limit else {
      throw ApusError(.execution, "position \(given) is outside a sequence of \(count)")
    }
    return place
  }
}

extension InferenceInputs {
  /// The element type of sequence operand `index`.
  func sequenceElement(_ index: Int) throws(ApusError) -> ValueType {
    guard index < types.count, let type = types[index] else {
      throw ApusError(.typeMismatch, "operand \(index) is missing")
    }
    guard case .sequence(let element) = type else {
      throw ApusError(.typeMismatch, "operand \(index) is \(type), expected a sequence")
    }
    return element
  }
}

/// The type of a sequence's elements, which may differ in shape.
enum SequenceElement {
  /// The common type of two; a rank or size that differs is left open.
  static func merged(_ a: ValueType, _ b: ValueType) throws(ApusError) -> ValueType {
    if a == b { return a }
    guard case .tensor(let x) = a, case .tensor(let y) = b, x.dataType == y.dataType else {
      throw ApusError(.typeMismatch, "one sequence cannot hold \(a) and \(b)")
    }
    guard let p = x.dims, let q = y.dims, p.count == q.count else { return typed(x.dataType, nil) }
    return typed(
      x.dataType,
      p.indices.map { p[$0] == q[$0] ? p[$0] : .symbol("element.\($0)") })
  }

  /// The type of one element taken out: sizes that elements may not share become its own.
  static func opened(_ element: ValueType, _ inputs: InferenceInputs) -> ValueType {
    guard case .tensor(let type) = element, let dims = type.dims else { return element }
    return typed(
      type.dataType,
      dims.indices.map { dims[$0].value == nil ? inputs.freshDim("element.\($0)") : dims[$0] })
  }
}

/// An operator without attributes.
protocol PlainOperator: Operator { init() }

extension PlainOperator {
  public init(reading attributes: inout AttributeReader) throws(ApusError) { self.init() }
  public var attributes: Attributes { [:] }
}

/// A sequence of the operands (ONNX `SequenceConstruct`).
public struct SequenceConstruct: PlainOperator {
  public static let name = "SequenceConstruct"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard inputs.count > 0 else { throw ApusError(.typeMismatch, "no elements are given") }
    var element = ValueType.tensor(try inputs.tensor(0))
    for index in 0..<inputs.count {
      element = try SequenceElement.merged(element, .tensor(try inputs.tensor(index)))
    }
    return [.sequence(element)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let type = try infer(InferenceInputs(types: inputs.map { $0?.type }))[0]
    guard case .sequence(let element) = type else { return [] }
    return [.sequence(inputs.compactMap { $0 }, of: element)]
  }
}

/// A sequence without elements (ONNX `SequenceEmpty`).
public struct SequenceEmpty: Operator {
  public static let name = "SequenceEmpty"
  /// The type of the elements it may get.
  public var dataType: DataType

  /// Creates the operator.
  public init(dataType: DataType = .float32) { self.dataType = dataType }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    dataType = try attributes.type("dtype", .float32)
  }

  public var attributes: Attributes { ["dtype": .type(dataType)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [.sequence(typed(dataType, nil))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    [.sequence([], of: typed(dataType, nil))]
  }
}

/// The element at a position (ONNX `SequenceAt`): operands sequence and position.
public struct SequenceAt: PlainOperator {
  public static let name = "SequenceAt"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let element = try inputs.sequenceElement(0)
    try inputs.requireInteger(1, "a position")
    return [SequenceElement.opened(element, inputs)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let (items, _) = try inputs.sequence(0)
    _ = try inputs.required(1)
    let place = try inputs.position(1, count: items.count, fallback: -1, within: items.count)
    return [items[place]]
  }
}

/// A sequence with one more element (ONNX `SequenceInsert`): operands sequence, element and the
/// position before which it goes (at the end when omitted).
public struct SequenceInsert: PlainOperator {
  public static let name = "SequenceInsert"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let element = try inputs.sequenceElement(0)
    return [.sequence(try SequenceElement.merged(element, .tensor(try inputs.tensor(1))))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var (items, element) = try inputs.sequence(0)
    let tensor = try inputs.required(1)
    element = try SequenceElement.merged(element, .tensor(tensor.type))
    let place = try inputs.position(
      2, count: items.count, fallback: items.count, within: items.count + 1)
    items.insert(.tensor(tensor), at: place)
    return [.sequence(items, of: element)]
  }
}

/// A sequence with one element less (ONNX `SequenceErase`): operands sequence and position (the last
/// when omitted).
public struct SequenceErase: PlainOperator {
  public static let name = "SequenceErase"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [.sequence(try inputs.sequenceElement(0))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var (items, element) = try inputs.sequence(0)
    items.remove(
      at: try inputs.position(
        1, count: items.count, fallback: items.count - 1, within: items.count))
    return [.sequence(items, of: element)]
  }
}

/// The number of elements (ONNX `SequenceLength`).
public struct SequenceLength: PlainOperator {
  public static let name = "SequenceLength"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    _ = try inputs.sequenceElement(0)
    return [typed(.int64, [])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let (items, _) = try inputs.sequence(0)
    return [.tensor(try Tensor([Int64(items.count)], .int64, shape: []))]
  }
}

/// A value that may be absent (ONNX `Optional`): made of the operand, or empty of the given type.
public struct OptionalConstruct: Operator {
  public static let name = "Optional"
  /// The type of the absent value.
  public var type: ValueType?

  /// Creates the operator.
  public init(type: ValueType? = nil) { self.type = type }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    switch attributes.value("type") {
    case .valueType(let given): type = given
    case nil: type = nil
    default: throw ApusError(.invalidAttribute, "attribute 'type' is not a type")
    }
  }

  public var attributes: Attributes {
    var result = Attributes()
    if let type { result["type"] = .valueType(type) }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard let element = inputs.types.first ?? nil ?? type else {
      throw ApusError(.typeMismatch, "neither a value nor its type is given")
    }
    return [.optional(element)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    if let value = inputs.first ?? nil { return [.optional(value, of: value.type)] }
    guard let type else {
      throw ApusError(.typeMismatch, "neither a value nor its type is given")
    }
    return [.optional(nil, of: type)]
  }
}

/// The value of an optional (ONNX `OptionalGetElement`); other values pass through.
public struct OptionalGetElement: PlainOperator {
  public static let name = "OptionalGetElement"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard let type = inputs.types.first ?? nil else {
      throw ApusError(.typeMismatch, "operand 0 is missing")
    }
    if case .optional(let element) = type { return [element] }
    return [type]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    guard let value = inputs.first ?? nil else {
      throw ApusError(.typeMismatch, "operand 0 is missing")
    }
    guard case .optional(let content, _) = value else { return [value] }
    guard let content else { throw ApusError(.execution, "the optional value is absent") }
    return [content]
  }
}

/// Whether an optional has a value (ONNX `OptionalHasElement`); an omitted operand has none.
public struct OptionalHasElement: PlainOperator {
  public static let name = "OptionalHasElement"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    [typed(.bool, [])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let present: Bool
    switch inputs.first ?? nil {
    case nil: present = false
    case .optional(let content, _)?: present = content != nil
    case _?: present = true
    }
    return [.tensor(try Tensor([Int64(present ? 1 : 0)], .bool, shape: []))]
  }
}
