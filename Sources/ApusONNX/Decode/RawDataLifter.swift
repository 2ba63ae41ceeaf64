// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Takes the weights out of a serialised model before it is decoded.
///
/// A protocol-buffer decoder copies every `bytes` field and refuses messages of 2 GB. This pass walks
/// the wire format once, knows only which fields lead to tensors, and writes a skeleton of the model
/// in which each large `raw_data` is replaced by its place in the file. The skeleton is small; the
/// weights are never copied.
struct RawDataLifter {
  /// The messages on the way from a model to its tensors.
  private enum Message {
    case model, graph, node, attribute, tensor, sparseTensor, function

    /// The message that a field of this message holds, when it leads to tensors.
    func child(_ field: UInt64) -> Message? {
      switch (self, field) {
      case (.model, 7): .graph
      case (.model, 25): .function
      case (.graph, 1), (.function, 7): .node
      case (.graph, 5), (.attribute, 5), (.attribute, 10): .tensor
      case (.graph, 15), (.attribute, 22), (.attribute, 23): .sparseTensor
      case (.sparseTensor, 1), (.sparseTensor, 2): .tensor
      case (.node, 5), (.function, 11): .attribute
      case (.attribute, 6), (.attribute, 11): .graph
      default: nil
      }
    }
  }

  /// Data up to this size stays in the message.
  static let threshold = 512
  private static let rawDataField: UInt64 = 9
  private static let offsetField: UInt64 = 536_870_910
  private static let lengthField: UInt64 = 536_870_911
  private static let depthLimit = 100

  private let view: ByteView

  /// The serialised model without its large tensors.
  static func skeleton(of view: ByteView) throws(ApusError) -> [UInt8] {
    try RawDataLifter(view: view).rewrite(.model, 0..<view.count, depth: 0)
  }

  private static func damaged(_ position: Int, _ what: String) -> ApusError {
    ApusError(
      .malformedFile, "not a readable ONNX model: \(what) at byte \(position)",
      hint: "the file may be cut off or not an ONNX file at all; try onnx.checker.check_model on it"
    )
  }

  private func rewrite(_ message: Message, _ range: Range<Int>, depth: Int) throws(ApusError)
    -> [UInt8]
  {
    guard depth < Self.depthLimit else {
      throw Self.damaged(range.lowerBound, "too deep a nesting")
    }
    var out: [UInt8] = []
    var position = range.lowerBound
    while position < range.upperBound {
      let start = position
      let key = try varint(&position, range.upperBound)
      let field = key >> 3
      guard field > 0, field <= Self.lengthField else {
        throw Self.damaged(start, "an impossible field number")
      }
      let isReserved = message == .tensor && field >= Self.offsetField
      switch key & 7 {
      case 0:
        _ = try varint(&position, range.upperBound)
      case 1, 5:
        position += key & 7 == 1 ? 8 : 4
        guard position <= range.upperBound else { throw Self.damaged(start, "a cut-off number") }
      case 2:
        let length = try varint(&position, range.upperBound)
        guard let count = Int(exactly: length), count <= range.upperBound - position else {
          throw Self.damaged(start, "a field longer than what contains it")
        }
        let contents = position..<position + count
        position += count
        if isReserved { continue }
        if message == .tensor, field == Self.rawDataField, count > Self.threshold {
          out.appendVarint(Self.offsetField << 3)
          out.appendVarint(UInt64(contents.lowerBound))
          out.appendVarint(Self.lengthField << 3)
          out.appendVarint(UInt64(count))
          continue
        }
        if let child = message.child(field) {
          let inner = try rewrite(child, contents, depth: depth + 1)
          out.appendVarint(key)
          out.appendVarint(UInt64(inner.count))
          out += inner
          continue
        }
      default:
        throw Self.damaged(start, "an unknown kind of field")
      }
      if !isReserved { out += view.bytes[start..<position] }
    }
    return out
  }

  private func varint(_ position: inout Int, _ end: Int) throws(ApusError) -> UInt64 {
    var value: UInt64 = 0
    var shift: UInt64 = 0
    let start = position
    while position < end, shift < 64 {
      let byte = view.bytes[position]
      position += 1
      value |= UInt64(byte & 0x7f) << shift
      if byte < 0x80 { return value }
      shift += 7
    }
    throw Self.damaged(start, "a cut-off number")
  }
}

extension [UInt8] {
  fileprivate mutating func appendVarint(_ value: UInt64) {
    var rest = value
    while rest >= 0x80 {
      append(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    append(UInt8(rest))
  }
}
