// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Splits the text format into words, numbers, quoted strings and punctuation.
struct TextLexer {
  private let bytes: [UInt8]
  private var position = 0

  init(_ text: String) { bytes = Array(text.utf8) }

  /// The line the reader stands in, counted from one.
  var line: Int { 1 + bytes[..<position].reduce(0) { $1 == UInt8(ascii: "\n") ? $0 + 1 : $0 } }

  func error(_ message: String) -> ApusError {
    ApusError(.malformedFile, message, location: GraphLocation(scope: "line \(line)"))
  }

  private mutating func skipSpace() {
    while position < bytes.count,
      bytes[position] == UInt8(ascii: " ") || bytes[position] == UInt8(ascii: "\n")
    {
      position += 1
    }
  }

  /// Whether nothing but space is left.
  var atEnd: Bool {
    mutating get {
      skipSpace()
      return position == bytes.count
    }
  }

  mutating func peek(_ character: Unicode.Scalar) -> Bool {
    skipSpace()
    return position < bytes.count && bytes[position] == UInt8(ascii: character)
  }

  mutating func take(_ character: Unicode.Scalar) -> Bool {
    guard peek(character) else { return false }
    position += 1
    return true
  }

  mutating func expect(_ character: Unicode.Scalar) throws(ApusError) {
    guard take(character) else { throw error("expected '\(character)'") }
  }

  mutating func peek(word: String) -> Bool {
    skipSpace()
    let end = position + word.utf8.count
    guard end <= bytes.count, bytes[position..<end].elementsEqual(word.utf8) else { return false }
    return end == bytes.count || !GraphText.isWord(bytes[end])
  }

  mutating func take(word: String) -> Bool {
    guard peek(word: word) else { return false }
    position += word.utf8.count
    return true
  }

  mutating func take(prefix: String) -> Bool {
    skipSpace()
    let end = position + prefix.utf8.count
    guard end <= bytes.count, bytes[position..<end].elementsEqual(prefix.utf8) else { return false }
    position = end
    return true
  }

  mutating func expect(word: String) throws(ApusError) {
    guard take(word: word) else { throw error("expected '\(word)'") }
  }

  /// A bare word. Value names may hold colons; the one that ends a name is followed by a space.
  mutating func word(stoppingAtColon: Bool = false) throws(ApusError) -> String {
    skipSpace()
    let start = position
    while position < bytes.count, GraphText.isWord(bytes[position]) {
      if stoppingAtColon, bytes[position] == UInt8(ascii: ":"),
        position + 1 == bytes.count || !GraphText.isWord(bytes[position + 1])
      {
        break
      }
      position += 1
    }
    guard position > start else { throw error("expected a word") }
    return String(decoding: bytes[start..<position], as: UTF8.self)
  }

  mutating func integer() throws(ApusError) -> Int {
    let text = try word()
    guard let value = Int(text) else { throw error("'\(text)' is not an integer") }
    return value
  }

  mutating func number() throws(ApusError) -> Double {
    let text = try word()
    guard let value = Double(text) else { throw error("'\(text)' is not a number") }
    return value
  }

  mutating func string() throws(ApusError) -> String {
    try expect("\"")
    var result: [UInt8] = []
    while position < bytes.count {
      let byte = bytes[position]
      position += 1
      if byte == UInt8(ascii: "\"") { return String(decoding: result, as: UTF8.self) }
      guard byte == UInt8(ascii: "\\") else {
        result.append(byte)
        continue
      }
      guard position < bytes.count else { break }
      let escaped = bytes[position]
      position += 1
      switch escaped {
      case UInt8(ascii: "n"): result.append(10)
      case UInt8(ascii: "u"):
        try expect("{")
        let digits = try word()
        try expect("}")
        guard let value = UInt8(digits, radix: 16) else { throw error("bad escape '\(digits)'") }
        result.append(value)
      default: result.append(escaped)
      }
    }
    throw error("a string is not closed")
  }
}
