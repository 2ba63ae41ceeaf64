// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Why a layer has the precision it has; kept in the engine file.
public struct LayerRecord: Sendable {
  /// The node's name.
  public var name: String
  /// The precision it was given.
  public var precision: String
  /// Measured seconds by precision; empty where nothing had to be chosen.
  public var seconds: [String: Double] = [:]
  /// The energy of the error that this layer alone makes in the results, as a share of theirs, by precision: for
  /// bytes and four bits measured in an engine that rounds this layer alone, for floats its share of what the whole
  /// network in that precision makes. Empty where no budget asked for it.
  public var errors: [String: Double] = [:]
  /// Why.
  public var reason = ""

  /// Creates a record.
  public init(name: String, precision: String) {
    self.name = name
    self.precision = precision
  }

  /// The record as JSON, times in microseconds.
  public var json: JSON {
    .object([
      ("name", .string(name)), ("precision", .string(precision)),
      (
        "microseconds",
        .object(seconds.sorted { $0.key < $1.key }.map { ($0.key, .number($0.value * 1e6)) })
      ),
      ("errors", .object(errors.sorted { $0.key < $1.key }.map { ($0.key, .number($0.value)) })),
      ("reason", .string(reason)),
    ])
  }

  /// The fields of a report line.
  var fields: [String] {
    [name, precision, Self.text(seconds), Self.text(errors), reason]
  }

  /// Reads the fields of a report line; nil when there are others.
  init?(fields: [String]) {
    guard fields.count == 5 else { return nil }
    self.init(name: fields[0], precision: fields[1])
    seconds = Self.numbers(fields[2])
    errors = Self.numbers(fields[3])
    reason = fields[4]
  }

  private static func text(_ numbers: [String: Double]) -> String {
    numbers.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: " ")
  }

  private static func numbers(_ text: String) -> [String: Double] {
    var result: [String: Double] = [:]
    for part in text.split(separator: " ") {
      let pair = part.split(separator: "=")
      if pair.count == 2, let value = Double(pair[1]) { result[String(pair[0])] = value }
    }
    return result
  }
}
