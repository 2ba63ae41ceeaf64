// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// The text form: `add(mul($0,2.5),max($1,0))`, casts as `cast<i8>(x)`.
extension ScalarExpr: CustomStringConvertible {
  public var description: String {
    switch self {
    case .input(let index): "$\(index)"
    case .const(let value): "\(value)"
    case .unary(let function, let a): "\(function.rawValue)(\(a))"
    case .binary(let function, let a, let b): "\(function.rawValue)(\(a),\(b))"
    case .select(let c, let a, let b): "select(\(c),\(a),\(b))"
    case .cast(let a, let type): "cast<\(type)>(\(a))"
    }
  }

  /// Parses the text form.
  ///
  /// - Throws: `malformed-file` naming the place where the text goes wrong.
  public init(parsing text: String) throws(ApusError) {
    var parser = Parser(text: Array(text.utf8))
    self = try parser.expression(depth: 0)
    guard parser.position == parser.text.count else { throw parser.error("unexpected text") }
  }

  private struct Parser {
    let text: [UInt8]
    var position = 0

    init(text: [UInt8]) { self.text = text }

    func error(_ what: String) -> ApusError {
      ApusError(
        .malformedFile,
        "\(what) at byte \(position) of the expression '\(String(decoding: text.prefix(200), as: UTF8.self))'")
    }

    mutating func expression(depth: Int) throws(ApusError) -> ScalarExpr {
      guard depth < 512 else { throw error("too deeply nested expression") }
      guard position < text.count else { throw error("missing expression") }
      let first = text[position]
      if first == UInt8(ascii: "$") {
        position += 1
        guard let index = Int(word()), index >= 0, index < 4096 else {
          throw error("bad operand number")
        }
        return .input(index)
      }
      let isNumber =
        first == UInt8(ascii: "-") || (first >= UInt8(ascii: "0") && first <= UInt8(ascii: "9"))
      let name = word()
      if isNumber || name == "inf" || name == "nan" {
        guard let value = Double(name) else { throw error("bad number '\(name)'") }
        return .const(value)
      }
      if name == "cast" {
        try expect("<")
        guard let type = DataType(name: word()) else { throw error("bad type") }
        try expect(">")
        try expect("(")
        let a = try expression(depth: depth + 1)
        try expect(")")
        return .cast(a, type)
      }
      try expect("(")
      let a = try expression(depth: depth + 1)
      if let function = UnaryFunction(rawValue: name) {
        try expect(")")
        return .unary(function, a)
      }
      try expect(",")
      let b = try expression(depth: depth + 1)
      if let function = BinaryFunction(rawValue: name) {
        try expect(")")
        return .binary(function, a, b)
      }
      guard name == "select" else { throw error("unknown function '\(name)'") }
      try expect(",")
      let c = try expression(depth: depth + 1)
      try expect(")")
      return .select(a, b, c)
    }

    mutating func expect(_ character: Unicode.Scalar) throws(ApusError) {
      guard position < text.count, text[position] == UInt8(ascii: character) else {
        throw error("expected '\(character)'")
      }
      position += 1
    }

    mutating func word() -> String {
      let start = position
      while position < text.count, !"(),<>$".utf8.contains(text[position]) { position += 1 }
      return String(decoding: text[start..<position], as: UTF8.self)
    }
  }
}
