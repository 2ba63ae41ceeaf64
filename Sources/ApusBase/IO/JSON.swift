// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A JSON value, for reports. Objects keep the order in which they were written.
public indirect enum JSON: Sendable {
  case null
  case bool(Bool)
  case int(Int)
  case number(Double)
  case string(String)
  case array([JSON])
  case object([(String, JSON)])

  /// The text; `indent` nil for one line.
  public func text(indent: Int? = nil) -> String {
    var result = ""
    append(to: &result, indent: indent, depth: 0)
    return result
  }

  private func append(to text: inout String, indent: Int?, depth: Int) {
    func newline(_ depth: Int) {
      guard let indent else { return }
      text += "\n" + String(repeating: " ", count: indent * depth)
    }
    switch self {
    case .null: text += "null"
    case .bool(let value): text += value ? "true" : "false"
    case .int(let value): text += "\(value)"
    case .number(let value): text += value.isFinite ? "\(value)" : "null"
    case .string(let value): text += Self.quoted(value)
    case .array(let items):
      text += "["
      for (index, item) in items.enumerated() {
        if index > 0 { text += indent == nil ? ", " : "," }
        newline(depth + 1)
        item.append(to: &text, indent: indent, depth: depth + 1)
      }
      if !items.isEmpty { newline(depth) }
      text += "]"
    case .object(let entries):
      text += "{"
      for (index, (key, value)) in entries.enumerated() {
        if index > 0 { text += indent == nil ? ", " : "," }
        newline(depth + 1)
        text += Self.quoted(key) + ": "
        value.append(to: &text, indent: indent, depth: depth + 1)
      }
      if !entries.isEmpty { newline(depth) }
      text += "}"
    }
  }

  private static func quoted(_ string: String) -> String {
    var result = "\""
    for scalar in string.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\t": result += "\\t"
      case "\r": result += "\\r"
      default:
        if scalar.value < 32 {
          let digits = String(scalar.value, radix: 16)
          result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        } else {
          result.unicodeScalars.append(scalar)
        }
      }
    }
    return result + "\""
  }
}
