// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The members of a ZIP file: stored and deflated, with 64-bit sizes, checksums verified.
struct ZipReader {
  /// One member of the file.
  struct Entry {
    var name: String
    var method: Int
    var checksum: UInt32
    var compressedCount: Int
    var count: Int
    var headerOffset: Int
  }

  let view: ByteView
  private(set) var entries: [Entry] = []

  private static func damaged(_ what: String) -> ApusError {
    ApusError(
      .malformedFile, "not a usable ZIP file: \(what)",
      hint: "the file may be cut off; write it again with numpy.savez")
  }

  init(_ view: ByteView) throws(ApusError) {
    self.view = view
    var (offset, count) = try directory()
    while count > 0 {
      offset = try readEntry(at: offset)
      count -= 1
    }
  }

  /// Where the central directory begins, and how many entries it has.
  private func directory() throws(ApusError) -> (offset: Int, count: Int) {
    let first = max(0, view.count - 22 - 65535)
    var end = view.count - 22
    while end >= first, view.little(end, as: UInt32.self) != 0x0605_4b50 { end -= 1 }
    guard end >= first, end >= 0,
      let count = view.size(end + 10, as: UInt16.self),
      let offset = view.size(end + 16, as: UInt32.self)
    else { throw Self.damaged("no end-of-directory record") }
    guard count == 0xffff || offset == 0xffff_ffff,
      view.little(end - 20, as: UInt32.self) == 0x0706_4b50
    else { return (offset, count) }
    guard let wide = view.size(end - 12, as: UInt64.self),
      view.little(wide, as: UInt32.self) == 0x0606_4b50,
      let wideCount = view.size(wide + 32, as: UInt64.self),
      let wideOffset = view.size(wide + 48, as: UInt64.self)
    else { throw Self.damaged("a broken 64-bit end-of-directory record") }
    return (wideOffset, wideCount)
  }

  private mutating func readEntry(at offset: Int) throws(ApusError) -> Int {
    guard view.little(offset, as: UInt32.self) == 0x0201_4b50,
      let flags = view.little(offset + 8, as: UInt16.self),
      let method = view.size(offset + 10, as: UInt16.self),
      let checksum = view.little(offset + 16, as: UInt32.self),
      var compressedCount = view.size(offset + 20, as: UInt32.self),
      var count = view.size(offset + 24, as: UInt32.self),
      let nameCount = view.size(offset + 28, as: UInt16.self),
      let extraCount = view.size(offset + 30, as: UInt16.self),
      let commentCount = view.size(offset + 32, as: UInt16.self),
      var header = view.size(offset + 42, as: UInt32.self),
      let name = view.slice(offset + 46, nameCount)?.text,
      let extra = view.slice(offset + 46 + nameCount, extraCount)
    else { throw Self.damaged("a broken directory entry") }
    guard flags & 1 == 0 else { throw Self.damaged("'\(name)' is encrypted") }
    var position = 0
    while let tag = extra.little(position, as: UInt16.self),
      let size = extra.size(position + 2, as: UInt16.self)
    {
      if tag == 1 {
        var field = position + 4
        for target in [0, 1, 2] {
          let current = [count, compressedCount, header][target]
          guard current == 0xffff_ffff else { continue }
          guard let value = extra.size(field, as: UInt64.self) else {
            throw Self.damaged("a broken 64-bit size of '\(name)'")
          }
          switch target {
          case 0: count = value
          case 1: compressedCount = value
          default: header = value
          }
          field += 8
        }
      }
      position += 4 + size
    }
    entries.append(
      Entry(
        name: name, method: method, checksum: checksum, compressedCount: compressedCount,
        count: count, headerOffset: header))
    return offset + 46 + nameCount + extraCount + commentCount
  }

  /// The bytes of a member; a stored member is a view of the file itself.
  func contents(of entry: Entry) throws(ApusError) -> ByteView {
    let header = entry.headerOffset
    guard header <= view.count, view.little(header, as: UInt32.self) == 0x0403_4b50,
      let nameCount = view.size(header + 26, as: UInt16.self),
      let extraCount = view.size(header + 28, as: UInt16.self),
      let data = view.slice(header + 30 + nameCount + extraCount, entry.compressedCount)
    else { throw Self.damaged("the data of '\(entry.name)' is not where the directory says") }
    let result: ByteView
    switch entry.method {
    case 0:
      guard entry.count == entry.compressedCount else {
        throw Self.damaged("two sizes for '\(entry.name)'")
      }
      result = data
    case 8:
      // DEFLATE expands at most 1032 times, so a larger claim is a lie.
      guard entry.count / 1032 <= entry.compressedCount else {
        throw Self.damaged("'\(entry.name)' cannot hold \(entry.count) bytes")
      }
      let memory = try AlignedMemory(byteCount: entry.count)
      try Inflate.run(
        data.bytes, into: UnsafeMutableRawBufferPointer(start: memory.base, count: entry.count))
      result = ByteView(memory: memory)
    default:
      throw ApusError(
        .notYetSupported, "'\(entry.name)' is compressed with ZIP method \(entry.method)",
        hint: "numpy.savez and numpy.savez_compressed write methods that can be read")
    }
    guard CRC32.of(result.bytes) == entry.checksum else {
      throw Self.damaged("the checksum of '\(entry.name)' is wrong")
    }
    return result
  }
}
