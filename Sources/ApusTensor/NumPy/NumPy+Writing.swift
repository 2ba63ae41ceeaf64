// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

extension NumPy {
  /// Writes one `.npy` file.
  ///
  /// Element types that NumPy does not have are widened: small floats to `float32`, packed integers
  /// to 8-bit ones.
  public static func write(_ tensor: Tensor, to path: String) throws(ApusError) {
    let (header, data) = try encoded(tensor)
    try FileIO.write([header.bytes, data.bytes], to: path)
    withExtendedLifetime((header, data)) {}
  }

  /// The bytes of a `.npy` file.
  public static func encode(_ tensor: Tensor) throws(ApusError) -> [UInt8] {
    let (header, data) = try encoded(tensor)
    return withExtendedLifetime((header, data)) { Array(header.bytes) + Array(data.bytes) }
  }

  /// Writes a `.npz` file, uncompressed.
  ///
  /// - Throws: `invalid-argument` when two arrays have the same name.
  public static func writeArchive(_ arrays: [NamedTensor], to path: String) throws(ApusError) {
    let parts = try archiveParts(arrays)
    try FileIO.write(parts.map(\.bytes), to: path)
    withExtendedLifetime(parts) {}
  }

  /// The bytes of a `.npz` file, uncompressed.
  public static func encodeArchive(_ arrays: [NamedTensor]) throws(ApusError) -> [UInt8] {
    try archiveParts(arrays).reduce(into: [UInt8]()) { $0.append(contentsOf: $1.bytes) }
  }

  private static func encoded(_ tensor: Tensor) throws(ApusError) -> (ByteView, Tensor) {
    if tensor.dataType == .string { return try encodedText(tensor) }
    var data = tensor
    if NumPyHeader.descriptor(data.dataType) == nil {
      let wide: DataType =
        data.dataType.isFloat ? .float32 : data.dataType.isSignedInteger ? .int8 : .uint8
      data = try data.converted(to: wide)
    }
    let descriptor = NumPyHeader.descriptor(data.dataType) ?? "<f4"
    return (
      try ByteView(copying: NumPyHeader.encode(descriptor, shape: tensor.shape)), data
    )
  }

  private static func encodedText(_ tensor: Tensor) throws(ApusError) -> (ByteView, Tensor) {
    let strings = tensor.strings.map { Array($0.unicodeScalars) }
    let width = max(1, strings.map(\.count).max() ?? 1)
    let units = try Tensor(.uint32, shape: [strings.count, width])
    let out = units.mutableBytes
    for (row, text) in strings.enumerated() {
      for (column, scalar) in text.enumerated() {
        out.storeBytes(
          of: scalar.value.littleEndian, toByteOffset: (row * width + column) * 4, as: UInt32.self)
      }
    }
    return (try ByteView(copying: NumPyHeader.encode("<U\(width)", shape: tensor.shape)), units)
  }

  // MARK: ZIP

  /// Bytes to write, and what keeps them alive.
  private struct Part {
    var bytes: UnsafeRawBufferPointer
    var owner: any Sendable

    init(_ array: [UInt8]) throws(ApusError) {
      let view = try ByteView(copying: array)
      bytes = view.bytes
      owner = view
    }

    init(_ bytes: UnsafeRawBufferPointer, _ owner: any Sendable) {
      self.bytes = bytes
      self.owner = owner
    }
  }

  private static func archiveParts(_ arrays: [NamedTensor]) throws(ApusError) -> [Part] {
    var parts: [Part] = []
    var directory: [UInt8] = []
    var offset = 0
    var seen: Set<String> = []
    for (name, tensor) in arrays {
      guard seen.insert(name).inserted, !name.isEmpty, name.utf8.count < 60_000 else {
        throw ApusError(.invalidArgument, "'\(name)' cannot name an array of the archive here")
      }
      let (header, data) = try encoded(tensor)
      var joined = CRC32()
      joined.update(header.bytes)
      joined.update(data.bytes)
      let count = header.count + data.byteCount
      let file = Array((name + ".npy").utf8)
      var local: [UInt8] = []
      // 64-bit sizes always, as NumPy itself writes them.
      local.append32(0x0403_4b50)
      local.append16(45, 0x0800, 0, 0, 0x21)
      local.append32(joined.value, 0xffff_ffff, 0xffff_ffff)
      local.append16(UInt16(file.count), 20)
      local += file
      local.append16(1, 16)
      local.append64(UInt64(count), UInt64(count))
      directory.append32(0x0201_4b50)
      directory.append16(45 | 3 << 8, 45, 0x0800, 0, 0, 0x21)
      directory.append32(joined.value, 0xffff_ffff, 0xffff_ffff)
      directory.append16(UInt16(file.count), 28, 0, 0, 0)
      directory.append32(0o600 << 16, 0xffff_ffff)
      directory += file
      directory.append16(1, 24)
      directory.append64(UInt64(count), UInt64(count), UInt64(offset))
      offset += local.count + count
      parts.append(try Part(local))
      parts.append(Part(header.bytes, header))
      parts.append(Part(data.bytes, data))
    }
    let end = offset + directory.count
    let size = directory.count
    directory.append32(0x0606_4b50)
    directory.append64(44)
    directory.append16(45 | 3 << 8, 45)
    directory.append32(0, 0)
    directory.append64(UInt64(arrays.count), UInt64(arrays.count), UInt64(size), UInt64(offset))
    directory.append32(0x0706_4b50, 0)
    directory.append64(UInt64(end))
    directory.append32(1, 0x0605_4b50)
    let shortCount = UInt16(min(arrays.count, 0xffff))
    directory.append16(0, 0, shortCount, shortCount)
    directory.append32(UInt32(min(size, 0xffff_ffff)), UInt32(min(offset, 0xffff_ffff)))
    directory.append16(0)
    parts.append(try Part(directory))
    return parts
  }
}

extension [UInt8] {
  fileprivate mutating func appendLittle<I: FixedWidthInteger>(_ values: [I]) {
    for value in values {
      for shift in stride(from: 0, to: I.bitWidth, by: 8) {
        append(UInt8(truncatingIfNeeded: value >> I(shift)))
      }
    }
  }
  fileprivate mutating func append16(_ values: UInt16...) { appendLittle(values) }
  fileprivate mutating func append32(_ values: UInt32...) { appendLittle(values) }
  fileprivate mutating func append64(_ values: UInt64...) { appendLittle(values) }
}
