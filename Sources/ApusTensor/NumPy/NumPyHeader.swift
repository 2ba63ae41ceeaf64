// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The header of a `.npy` file: element type, order and shape.
struct NumPyHeader {
  /// What one element is.
  enum Element: Equatable {
    case plain(DataType)
    /// Text of a fixed number of UTF-32 units.
    case utf32(Int)
    /// Text of a fixed number of bytes.
    case byteText(Int)
  }

  var element: Element
  var isBigEndian: Bool
  var isFortranOrder: Bool
  var shape: [Int]
  /// Where the elements begin.
  var dataOffset: Int

  private static func damaged(_ what: String) -> ApusError {
    ApusError(
      .malformedFile, "not a usable .npy file: \(what)",
      hint: "write it with numpy.save from an array of numbers, truth values or texts")
  }

  init(_ view: ByteView) throws(ApusError) {
    let magic: [UInt8] = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]
    guard view.count >= 10, view.bytes.prefix(6).elementsEqual(magic) else {
      throw Self.damaged("it does not begin with the .npy signature")
    }
    let version = view.bytes[6]
    guard (1...3).contains(version) else { throw Self.damaged("format version \(version)") }
    let prefix = version == 1 ? 10 : 12
    let size = version == 1 ? view.size(8, as: UInt16.self) : view.size(8, as: UInt32.self)
    guard let size, size <= 1 << 20, let text = view.slice(prefix, size)?.text else {
      throw Self.damaged("the header is cut off")
    }
    dataOffset = prefix + size
    var scanner = HeaderScanner(text)
    guard let fields = scanner.dictionary() else {
      throw Self.damaged("the header '\(text.prefix(120))' cannot be read")
    }
    guard case .text(let descriptor)? = fields["descr"] else {
      throw Self.damaged("arrays of records cannot be read")
    }
    guard case .truth(let fortran)? = fields["fortran_order"],
      case .tuple(let shape)? = fields["shape"]
    else { throw Self.damaged("the header lacks 'fortran_order' or 'shape'") }
    isFortranOrder = fortran
    self.shape = shape
    (element, isBigEndian) = try Self.element(descriptor)
  }

  private static func element(_ descriptor: String) throws(ApusError) -> (Element, Bool) {
    var code = Substring(descriptor)
    var isBigEndian = false
    if let first = code.first, "<>=|".contains(first) {
      isBigEndian = first == ">"
      code = code.dropFirst()
    }
    if let kind = code.first, kind == "U" || kind == "S" || kind == "a",
      let width = Int(code.dropFirst()), width >= 0, width <= 1 << 30
    {
      return (kind == "U" ? .utf32(width) : .byteText(width), isBigEndian)
    }
    guard let type = dataType(String(code)) else {
      throw ApusError(
        .malformedFile, "arrays of NumPy type '\(descriptor)' cannot be read",
        hint: "convert the array to a numeric type before saving it")
    }
    return (.plain(type), isBigEndian)
  }

  private static func dataType(_ code: String) -> DataType? {
    switch code {
    case "f2": .float16
    case "f4": .float32
    case "f8": .float64
    case "i1": .int8
    case "i2": .int16
    case "i4": .int32
    case "i8": .int64
    case "u1", "B": .uint8
    case "u2": .uint16
    case "u4": .uint32
    case "u8": .uint64
    case "b1", "?": .bool
    case "c8": .complex64
    case "c16": .complex128
    default: nil
    }
  }

  /// NumPy's name of an element type; nil when NumPy has none.
  static func descriptor(_ type: DataType) -> String? {
    switch type {
    case .float16: "<f2"
    case .float32: "<f4"
    case .float64: "<f8"
    case .int8: "|i1"
    case .int16: "<i2"
    case .int32: "<i4"
    case .int64: "<i8"
    case .uint8: "|u1"
    case .uint16: "<u2"
    case .uint32: "<u4"
    case .uint64: "<u8"
    case .bool: "|b1"
    case .complex64: "<c8"
    case .complex128: "<c16"
    default: nil
    }
  }

  /// The header of a file with these elements, padded so that the elements are aligned.
  static func encode(_ descriptor: String, shape: [Int]) -> [UInt8] {
    let sizes = shape.map(String.init).joined(separator: ", ") + (shape.count == 1 ? "," : "")
    var text = "{'descr': '\(descriptor)', 'fortran_order': False, 'shape': (\(sizes)), }"
    let isLong = text.utf8.count + 11 > 60_000
    let prefix = isLong ? 12 : 10
    let padding = (64 - (prefix + text.utf8.count + 1) % 64) % 64
    text += String(repeating: " ", count: padding) + "\n"
    let count = text.utf8.count
    var bytes: [UInt8] = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, isLong ? 2 : 1, 0]
    for shift in stride(from: 0, to: isLong ? 32 : 16, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: count >> shift))
    }
    return bytes + Array(text.utf8)
  }
}

/// Reads the Python dictionary literal in the header of a `.npy` file.
private struct HeaderScanner {
  enum Field {
    case text(String)
    case truth(Bool)
    case tuple([Int])
    case other
  }

  private let bytes: [UInt8]
  private var position = 0

  init(_ text: String) { bytes = Array(text.utf8) }

  private mutating func skipSpace() {
    while position < bytes.count, bytes[position] <= 0x20 { position += 1 }
  }

  private mutating func accept(_ character: Character) -> Bool {
    skipSpace()
    guard position < bytes.count, bytes[position] == character.asciiValue else { return false }
    position += 1
    return true
  }

  private mutating func quoted() -> String? {
    skipSpace()
    guard position < bytes.count, bytes[position] == 0x27 || bytes[position] == 0x22 else {
      return nil
    }
    let quote = bytes[position]
    let start = position + 1
    var end = start
    while end < bytes.count, bytes[end] != quote { end += 1 }
    guard end < bytes.count else { return nil }
    position = end + 1
    return String(decoding: bytes[start..<end], as: UTF8.self)
  }

  private mutating func word() -> String {
    skipSpace()
    let start = position
    while position < bytes.count {
      let byte = bytes[position]
      guard
        byte >= 0x30 && byte <= 0x39 || byte >= 0x41 && byte <= 0x5a || byte >= 0x61 && byte <= 0x7a
      else { break }
      position += 1
    }
    return String(decoding: bytes[start..<position], as: UTF8.self)
  }

  private mutating func tuple() -> [Int]? {
    var sizes: [Int] = []
    while !accept(")") {
      var digits = word()
      if digits.hasSuffix("L") { digits.removeLast() }
      guard let size = Int(digits), sizes.count < 64 else { return nil }
      sizes.append(size)
      if !accept(",") {
        guard accept(")") else { return nil }
        break
      }
    }
    return sizes
  }

  mutating func dictionary() -> [String: Field]? {
    guard accept("{") else { return nil }
    var fields: [String: Field] = [:]
    while !accept("}") {
      guard let key = quoted(), accept(":") else { return nil }
      if let text = quoted() {
        fields[key] = .text(text)
      } else if accept("(") {
        guard let sizes = tuple() else { return nil }
        fields[key] = .tuple(sizes)
      } else if accept("[") {
        // A record type; what follows is not needed to refuse it.
        return ["descr": .other]
      } else {
        switch word() {
        case "True": fields[key] = .truth(true)
        case "False": fields[key] = .truth(false)
        default: return nil
        }
      }
      if !accept(",") {
        guard accept("}") else { return nil }
        break
      }
    }
    return fields
  }
}
