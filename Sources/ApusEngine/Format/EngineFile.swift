// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// The container of a serialised engine: a header, a table of sections, the sections.
///
/// All numbers are little-endian. Layout:
/// - bytes 0-7 magic `APUSENGN`; 8-11 format version; 12-15 section count; 16-23 checksum of the
///   section table; 24-31 total file size; 32-63 zero.
/// - the section table: per section kind (8), offset (8), length (8), checksum (8).
/// - the sections, each on a 64-byte boundary, so that constants are used where they are mapped.
///
/// `Documentation/Formats/engine.md` describes it for other readers.
package enum EngineFile {
  /// The version this code writes and reads.
  package static let formatVersion: UInt32 = 2
  package static let magic: [UInt8] = Array("APUSENGN".utf8)
  private static let headerByteCount = 64
  private static let entryByteCount = 32

  /// What a section holds.
  package enum Kind: UInt64, CaseIterable {
    /// `key=value` lines.
    case metadata = 1
    /// The graph's text.
    case graph = 2
    /// The tactic selections: a timing cache's text.
    case selections = 3
    /// Offset and length of every constant, 16 bytes each.
    case constantTable = 4
    /// The constants' bytes.
    case constants = 5
    /// The build report: tab-separated lines.
    case report = 6
  }

  /// Passes a whole file, in pieces that are valid during the call, to `sink`.
  package static func write(
    _ sections: [(kind: Kind, chunks: [UnsafeRawBufferPointer])],
    to sink: ([UnsafeRawBufferPointer]) throws(ApusError) -> Void
  ) throws(ApusError) {
    var table: [UInt8] = []
    var offset = aligned(headerByteCount + sections.count * entryByteCount)
    var placed: [(offset: Int, section: [UnsafeRawBufferPointer])] = []
    for section in sections {
      var sum = Checksum()
      var length = 0
      for chunk in section.chunks {
        sum.update(chunk)
        length += chunk.count
      }
      append(section.kind.rawValue, to: &table)
      append(UInt64(offset), to: &table)
      append(UInt64(length), to: &table)
      append(sum.value, to: &table)
      placed.append((offset, section.chunks))
      offset = aligned(offset + length)
    }
    var sum = Checksum()
    table.withUnsafeBytes { sum.update($0) }
    var header = magic
    append(UInt64(formatVersion) | UInt64(sections.count) << 32, to: &header)
    append(sum.value, to: &header)
    append(UInt64(offset), to: &header)
    header += Array(repeating: 0, count: headerByteCount - header.count)
    try writeAll(header + table, placed, total: offset, sink)
  }

  private static func writeAll(
    _ head: [UInt8], _ sections: [(offset: Int, section: [UnsafeRawBufferPointer])], total: Int,
    _ sink: ([UnsafeRawBufferPointer]) throws(ApusError) -> Void
  ) throws(ApusError) {
    let padding = [UInt8](repeating: 0, count: 64)
    let result: Result<Void, ApusError> = head.withUnsafeBytes { head in
      padding.withUnsafeBytes { zeros in
        var chunks = [head]
        var position = head.count
        for (offset, section) in sections {
          chunks.append(UnsafeRawBufferPointer(rebasing: zeros[0..<(offset - position)]))
          chunks += section
          position = offset + section.reduce(0) { $0 + $1.count }
        }
        chunks.append(UnsafeRawBufferPointer(rebasing: zeros[0..<(total - position)]))
        do throws(ApusError) {
          try sink(chunks)
          return .success(())
        } catch { return .failure(error) }
      }
    }
    try result.get()
  }

  private static func aligned(_ offset: Int) -> Int { (offset + 63) & ~63 }

  private static func append(_ value: UInt64, to bytes: inout [UInt8]) {
    withUnsafeBytes(of: value.littleEndian) { bytes += $0 }
  }

  /// Whether the bytes begin like an engine file.
  package static func looksLikeEngine(_ bytes: UnsafeRawBufferPointer) -> Bool {
    bytes.count >= magic.count && bytes.prefix(magic.count).elementsEqual(magic)
  }

  /// The sections of a file, each checked against its checksum.
  ///
  /// - Throws: `malformed-file` for damaged bytes, `incompatible` for another format version.
  package static func sections(of bytes: UnsafeRawBufferPointer) throws(ApusError)
    -> [Kind: UnsafeRawBufferPointer]
  {
    guard looksLikeEngine(bytes) else {
      throw damaged("it does not begin like an Apus engine", hint: "build it with 'apus build'")
    }
    guard bytes.count >= headerByteCount else { throw damaged("it ends within the header") }
    let word = load(bytes, 8)
    let version = UInt32(truncatingIfNeeded: word)
    guard version == formatVersion else {
      throw ApusError(
        .incompatible,
        "the engine has format version \(version), this build reads version \(formatVersion)",
        hint: "build the engine again with this version of Apus")
    }
    let count = Int(word >> 32)
    guard count <= 64, headerByteCount + count * entryByteCount <= bytes.count else {
      throw damaged("it ends within the section table")
    }
    guard load(bytes, 24) == UInt64(bytes.count) else {
      throw damaged("it should have \(load(bytes, 24)) bytes but has \(bytes.count)")
    }
    let table = UnsafeRawBufferPointer(
      rebasing: bytes[headerByteCount..<(headerByteCount + count * entryByteCount)])
    var sum = Checksum()
    sum.update(table)
    guard sum.value == load(bytes, 16) else { throw damaged("the section table is damaged") }
    var sections: [Kind: UnsafeRawBufferPointer] = [:]
    for index in 0..<count {
      let (kind, section) = try section(table, index, in: bytes)
      if let kind { sections[kind] = section }
    }
    return sections
  }

  private static func section(
    _ table: UnsafeRawBufferPointer, _ index: Int, in bytes: UnsafeRawBufferPointer
  ) throws(ApusError) -> (Kind?, UnsafeRawBufferPointer) {
    let entry = index * entryByteCount
    let offset = load(table, entry + 8)
    let length = load(table, entry + 16)
    guard offset <= UInt64(bytes.count), length <= UInt64(bytes.count) - offset else {
      throw damaged("section \(index) lies outside the file")
    }
    let section = UnsafeRawBufferPointer(
      rebasing: bytes[Int(offset)..<(Int(offset) + Int(length))])
    var sum = Checksum()
    sum.update(section)
    guard sum.value == load(table, entry + 24) else {
      throw damaged("the checksum of section \(index) is wrong")
    }
    return (Kind(rawValue: load(table, entry)), section)
  }

  package static func load(_ bytes: UnsafeRawBufferPointer, _ offset: Int) -> UInt64 {
    UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }

  package static func damaged(_ what: String, hint: String? = nil) -> ApusError {
    ApusError(
      .malformedFile, "the engine file cannot be read: \(what)",
      hint: hint ?? "the file is damaged or cut short: copy or build it again")
  }
}
