// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif
import SwiftProtobuf

extension ONNXModelProto {
  /// Decodes a serialised model.
  package static func decode(_ bytes: [UInt8]) throws -> ONNXModelProto {
    var options = BinaryDecodingOptions()
    options.discardUnknownFields = true
    return try ONNXModelProto(serializedBytes: bytes, options: options)
  }

  /// The serialised model.
  package func encoded() throws -> [UInt8] { try serializedBytes() }
}

extension ONNXTensorProto {
  /// The raw data's size.
  package var rawByteCount: Int { rawData.count }

  /// Copies the raw data; `target` must have `rawByteCount` bytes.
  package func copyRawData(to target: UnsafeMutableRawBufferPointer) {
    rawData.withUnsafeBytes { target.copyMemory(from: $0) }
  }

  /// The elements of a tensor of texts.
  package var texts: [String] { stringData.map { String(decoding: $0, as: UTF8.self) } }

  /// Sets raw data.
  package mutating func setRawData(_ bytes: [UInt8]) { rawData = Data(bytes) }
}

extension ONNXAttributeProto {
  /// The text; damaged UTF-8 is repaired.
  package var text: String { String(decoding: s, as: UTF8.self) }

  /// The list of texts.
  package var texts: [String] { strings.map { String(decoding: $0, as: UTF8.self) } }

  /// Sets the text.
  package mutating func setText(_ text: String) { s = Data(text.utf8) }
}
