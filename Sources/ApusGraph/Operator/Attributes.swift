// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// The value of an operator's attribute.
public enum AttributeValue: Sendable {
  case int(Int)
  case float(Double)
  case bool(Bool)
  case string(String)
  case ints([Int])
  case floats([Double])
  case strings([String])
  case type(DataType)
  case tensor(Tensor)
  case expression(ScalarExpr)
  case graph(Graph)
  case op(any Operator)
  case valueType(ValueType)
}

/// An operator's attributes in a fixed order: what the text format prints, the engine file stores and
/// the inspector shows.
public struct Attributes: Sendable {
  /// Names and values in printing order.
  public private(set) var entries: [(name: String, value: AttributeValue)] = []

  /// Creates an empty list.
  public init() {}

  /// Adds or replaces an attribute.
  public subscript(name: String) -> AttributeValue? {
    get { entries.first { $0.name == name }?.value }
    set {
      entries.removeAll { $0.name == name }
      if let newValue { entries.append((name, newValue)) }
    }
  }
}

extension Attributes: ExpressibleByDictionaryLiteral {
  public init(dictionaryLiteral elements: (String, AttributeValue)...) {
    entries = elements.map { (name: $0.0, value: $0.1) }
  }
}

/// Reads attributes by name and type, remembering which were read, so that a misspelt or unknown
/// attribute is an error and not a silent default.
public struct AttributeReader {
  private let attributes: Attributes
  private let operatorName: String
  private var unread: Set<String>

  /// A reader over one operator's attributes.
  public init(_ attributes: Attributes, for operatorName: String) {
    self.attributes = attributes
    self.operatorName = operatorName
    unread = Set(attributes.entries.map(\.name))
  }

  /// The raw value, marked as read.
  public mutating func value(_ name: String) -> AttributeValue? {
    unread.remove(name)
    return attributes[name]
  }

  private func wrong(_ name: String, _ wanted: String) -> ApusError {
    ApusError(
      .invalidAttribute, "attribute '\(name)' of \(operatorName) is missing or not \(wanted)")
  }

  /// An integer; `fallback` when absent (an error when that is nil too).
  public mutating func int(_ name: String, _ fallback: Int? = nil) throws(ApusError) -> Int {
    switch value(name) {
    case .int(let value): return value
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "an integer")
  }

  /// A floating-point number.
  public mutating func float(_ name: String, _ fallback: Double? = nil) throws(ApusError) -> Double {
    switch value(name) {
    case .float(let value): return value
    case .int(let value): return Double(value)
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "a number")
  }

  /// A truth value.
  public mutating func bool(_ name: String, _ fallback: Bool? = nil) throws(ApusError) -> Bool {
    switch value(name) {
    case .bool(let value): return value
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "true or false")
  }

  /// A text.
  public mutating func string(_ name: String, _ fallback: String? = nil) throws(ApusError) -> String {
    switch value(name) {
    case .string(let value): return value
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "a string")
  }

  /// A list of integers.
  public mutating func ints(_ name: String, _ fallback: [Int]? = nil) throws(ApusError) -> [Int] {
    switch value(name) {
    case .ints(let value): return value
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "a list of integers")
  }

  /// A list of numbers.
  public mutating func floats(_ name: String, _ fallback: [Double]? = nil) throws(ApusError)
    -> [Double]
  {
    switch value(name) {
    case .floats(let value): return value
    case .ints(let value): return value.map(Double.init)
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "a list of numbers")
  }

  /// A list of texts.
  public mutating func strings(_ name: String, _ fallback: [String]? = nil) throws(ApusError)
    -> [String]
  {
    switch value(name) {
    case .strings(let value): return value
    case .ints(let value) where value.isEmpty: return []
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "a list of strings")
  }

  /// An element type.
  public mutating func type(_ name: String, _ fallback: DataType? = nil) throws(ApusError)
    -> DataType
  {
    switch value(name) {
    case .type(let value): return value
    case nil: if let fallback { return fallback }
    default: break
    }
    throw wrong(name, "an element type")
  }

  /// A tensor.
  public mutating func tensor(_ name: String) throws(ApusError) -> Tensor {
    guard case .tensor(let value) = value(name) else { throw wrong(name, "a tensor") }
    return value
  }

  /// A scalar expression.
  public mutating func expression(_ name: String) throws(ApusError) -> ScalarExpr {
    guard case .expression(let value) = value(name) else { throw wrong(name, "an expression") }
    return value
  }

  /// A graph.
  public mutating func graph(_ name: String) throws(ApusError) -> Graph {
    guard case .graph(let value) = value(name) else { throw wrong(name, "a graph") }
    return value
  }

  /// An operator.
  public mutating func op(_ name: String) throws(ApusError) -> any Operator {
    guard case .op(let value) = value(name) else { throw wrong(name, "an operator") }
    return value
  }

  /// All attributes, marked as read, for operators that do not know their names beforehand.
  public mutating func all() -> Attributes {
    unread.removeAll()
    return attributes
  }

  /// Fails when an attribute was never read.
  public func finish() throws(ApusError) {
    guard let name = unread.min() else { return }
    throw ApusError(.invalidAttribute, "\(operatorName) has no attribute '\(name)'")
  }
}
