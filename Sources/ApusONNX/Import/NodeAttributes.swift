// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusProto
import ApusTensor

/// Reads a node's attributes by name and type and remembers which were read, so that an attribute
/// nobody looked at can be reported.
package final class NodeAttributes {
  private var entries: [String: ONNXAttributeProto] = [:]
  private var unread: Set<String> = []
  private let decoder: TensorDecoder

  /// - Throws: `malformed-file` when two attributes have the same name.
  init(_ attributes: [ONNXAttributeProto], decoder: TensorDecoder) throws(ApusError) {
    self.decoder = decoder
    for attribute in attributes {
      guard entries.updateValue(attribute, forKey: attribute.name) == nil else {
        throw ApusError(.malformedFile, "attribute '\(attribute.name)' is given twice")
      }
      unread.insert(attribute.name)
    }
  }

  /// The names that were never asked for.
  package var unreadNames: [String] { unread.sorted() }

  /// Whether the attribute is given; does not count as reading it.
  package func has(_ name: String) -> Bool { entries[name] != nil }

  /// Marks attributes as known and of no consequence.
  package func ignore(_ names: String...) { names.forEach { unread.remove($0) } }

  private func entry(_ name: String, _ type: ONNXAttributeProto.AttributeType, _ what: String)
    throws(ApusError) -> ONNXAttributeProto?
  {
    unread.remove(name)
    guard let attribute = entries[name] else { return nil }
    guard attribute.type == type || attribute.type == .undefined else {
      throw ApusError(.invalidAttribute, "attribute '\(name)' is not \(what)")
    }
    return attribute
  }

  private func missing(_ name: String, _ what: String) -> ApusError {
    ApusError(.invalidAttribute, "attribute '\(name)' (\(what)) is missing")
  }

  /// An integer; without a fallback the attribute is required.
  package func int(_ name: String, _ fallback: Int? = nil) throws(ApusError) -> Int {
    if let attribute = try entry(name, .int, "an integer") { return Int(attribute.i) }
    guard let fallback else { throw missing(name, "an integer") }
    return fallback
  }

  /// An integer that may be absent.
  package func optionalInt(_ name: String) throws(ApusError) -> Int? {
    try entry(name, .int, "an integer").map { Int($0.i) }
  }

  /// An integer used as a truth value.
  package func flag(_ name: String, _ fallback: Bool) throws(ApusError) -> Bool {
    try int(name, fallback ? 1 : 0) != 0
  }

  /// A number.
  package func float(_ name: String, _ fallback: Double? = nil) throws(ApusError) -> Double {
    if let attribute = try entry(name, .float, "a number") { return Double(attribute.f) }
    guard let fallback else { throw missing(name, "a number") }
    return fallback
  }

  /// A number that may be absent.
  package func optionalFloat(_ name: String) throws(ApusError) -> Double? {
    try entry(name, .float, "a number").map { Double($0.f) }
  }

  /// A text.
  package func string(_ name: String, _ fallback: String? = nil) throws(ApusError) -> String {
    if let attribute = try entry(name, .string, "a text") { return attribute.text }
    guard let fallback else { throw missing(name, "a text") }
    return fallback
  }

  /// Integers.
  package func ints(_ name: String, _ fallback: [Int]? = nil) throws(ApusError) -> [Int] {
    if let attribute = try entry(name, .ints, "a list of integers") {
      return attribute.ints.map { Int($0) }
    }
    guard let fallback else { throw missing(name, "a list of integers") }
    return fallback
  }

  /// Integers that may be absent.
  package func optionalInts(_ name: String) throws(ApusError) -> [Int]? {
    try entry(name, .ints, "a list of integers").map { $0.ints.map { Int($0) } }
  }

  /// Numbers.
  package func floats(_ name: String, _ fallback: [Double]? = nil) throws(ApusError) -> [Double] {
    if let attribute = try entry(name, .floats, "a list of numbers") {
      return attribute.floats.map { Double($0) }
    }
    guard let fallback else { throw missing(name, "a list of numbers") }
    return fallback
  }

  /// Texts.
  package func strings(_ name: String, _ fallback: [String]? = nil) throws(ApusError) -> [String] {
    if let attribute = try entry(name, .strings, "a list of texts") { return attribute.texts }
    guard let fallback else { throw missing(name, "a list of texts") }
    return fallback
  }

  /// A tensor that may be absent.
  package func tensor(_ name: String) throws(ApusError) -> Tensor? {
    if let attribute = try entry(name, .tensor, "a tensor") {
      return try decoder.tensor(attribute.t, name: name)
    }
    return nil
  }

  /// A sparse tensor, in dense form.
  package func sparseTensor(_ name: String) throws(ApusError) -> Tensor? {
    if let attribute = try entry(name, .sparseTensor, "a sparse tensor") {
      return try decoder.dense(attribute.sparseTensor)
    }
    return nil
  }

  /// An element type, by its ONNX number.
  package func dataType(_ name: String) throws(ApusError) -> DataType? {
    guard let attribute = try entry(name, .int, "an element type") else { return nil }
    guard let code = Int32(exactly: attribute.i), code != 0 else {
      throw ApusError(
        .invalidAttribute, "attribute '\(name)' is \(attribute.i), not an element type")
    }
    return try TypeDecoder.dataType(code)
  }

  /// A type that may be absent.
  package func type(_ name: String) throws(ApusError) -> ValueType? {
    guard let attribute = try entry(name, .typeProto, "a type") else { return nil }
    return try TypeDecoder.type(attribute.tp, name: name)
  }

  /// Every attribute as the graph keeps it, for operators that Apus does not know.
  ///
  /// - Throws: `not-yet-supported` for graphs, types and sparse tensors.
  func all() throws(ApusError) -> Attributes {
    var result = Attributes()
    for (name, attribute) in entries.sorted(by: { $0.key < $1.key }) {
      result[name] = try value(name, attribute)
    }
    return result
  }

  private func value(_ name: String, _ attribute: ONNXAttributeProto) throws(ApusError)
    -> AttributeValue?
  {
    switch attribute.type {
    case .int: return .int(try int(name))
    case .float: return .float(try float(name))
    case .string: return .string(try string(name))
    case .ints: return .ints(try ints(name))
    case .floats: return .floats(try floats(name))
    case .strings: return .strings(try strings(name))
    case .tensor: return try tensor(name).map { .tensor($0) }
    default:
      throw ApusError(
        .notYetSupported, "attribute '\(name)' of a custom operator is neither number, text, list "
          + "nor tensor")
    }
  }

  /// A graph; always required.
  func graph(_ name: String) throws(ApusError) -> ONNXGraphProto {
    guard let attribute = try entry(name, .graph, "a graph"), attribute.hasG else {
      throw missing(name, "a graph")
    }
    return attribute.g
  }
}
