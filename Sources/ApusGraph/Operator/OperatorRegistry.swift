// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The operators that text and engine files may name. A value passed to readers; there is no global
/// registry. Custom operators are added with `register`.
public struct OperatorRegistry: Sendable {
  private var types: [String: any Operator.Type] = [:]

  /// Creates an empty registry.
  public init() {}

  /// Adds an operator type under its name.
  public mutating func register(_ type: any Operator.Type) { types[type.name] = type }

  /// The names, sorted.
  public var names: [String] { types.keys.sorted() }

  /// Creates an operator from its name and attributes.
  ///
  /// - Throws: `unsupported-operator` for an unknown name, `invalid-attribute` for bad attributes.
  public func make(_ name: String, _ attributes: Attributes) throws(ApusError) -> any Operator {
    guard let type = types[name] else {
      throw ApusError(
        .unsupportedOperator, "no operator named '\(name)' is registered",
        hint: "register it with OperatorRegistry.register before loading")
    }
    var reader = AttributeReader(attributes, for: name)
    let result = try type.init(reading: &reader)
    try reader.finish()
    return result
  }
}
