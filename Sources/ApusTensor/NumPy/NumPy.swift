// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// NumPy's file formats: `.npy` (one array) and `.npz` (a ZIP file of named arrays).
///
/// Arrays in C order and native byte order are views of the mapped file where their address allows
/// it. Damaged files give errors, never traps.
public enum NumPy {
  /// An array of an archive with its name.
  public typealias NamedTensor = (name: String, tensor: Tensor)

  /// Reads one `.npy` file.
  ///
  /// - Throws: `file-access`, or `malformed-file` naming the file.
  public static func readArray(path: String) throws(ApusError) -> Tensor {
    do {
      return try array(ByteView(try MappedFile(path: path)))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Reads the bytes of one `.npy` file.
  public static func readArray(bytes: [UInt8]) throws(ApusError) -> Tensor {
    try array(ByteView(copying: bytes))
  }

  /// Reads all arrays of a `.npz` file, in the order of its directory.
  ///
  /// - Throws: `file-access`, or `malformed-file` naming the file and the array.
  public static func readArchive(path: String) throws(ApusError) -> [NamedTensor] {
    do {
      return try archive(ByteView(try MappedFile(path: path)))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Reads the bytes of a `.npz` file.
  public static func readArchive(bytes: [UInt8]) throws(ApusError) -> [NamedTensor] {
    try archive(ByteView(copying: bytes))
  }

  private static func archive(_ view: ByteView) throws(ApusError) -> [NamedTensor] {
    let zip = try ZipReader(view)
    var result: [NamedTensor] = []
    for entry in zip.entries where !entry.name.hasSuffix("/") {
      let name = entry.name.hasSuffix(".npy") ? String(entry.name.dropLast(4)) : entry.name
      do {
        result.append((name, try array(try zip.contents(of: entry))))
      } catch {
        throw error.at(GraphLocation(scope: "array '\(name)'"))
      }
    }
    return result
  }

  // MARK: Elements

  private static func array(_ view: ByteView) throws(ApusError) -> Tensor {
    let header = try NumPyHeader(view)
    let count = try Tensor.checkedCount(header.shape)
    let width: Int
    switch header.element {
    case .plain(let type): width = type.bitWidth / 8
    case .utf32(let units): width = units * 4
    case .byteText(let units): width = units
    }
    let (byteCount, overflow) = count.multipliedReportingOverflow(by: width)
    guard !overflow, let data = view.slice(header.dataOffset, byteCount) else {
      throw ApusError(
        .malformedFile,
        "an array of shape \(header.shape) needs \(overflow ? "far more" : String(byteCount)) bytes, "
          + "the file has \(view.count - header.dataOffset)",
        hint: "the file is cut off or its header is damaged")
    }
    let stored =
      header.isFortranOrder ? Array(header.shape.reversed()) : header.shape
    let tensor: Tensor
    switch header.element {
    case .plain(let type): tensor = try plain(data, type, stored, header.isBigEndian)
    case .utf32(let units):
      // Strings of width zero take no bytes, so the file's size does not bound their number.
      guard count <= 1 << 28 else { throw ApusError(.resourceLimit, "\(count) texts are too many") }
      tensor = try Tensor(
        strings: (0..<count).map { utf32(data, $0 * width, units, header.isBigEndian) },
        shape: stored)
    case .byteText:
      guard count <= 1 << 28 else { throw ApusError(.resourceLimit, "\(count) texts are too many") }
      tensor = try Tensor(
        strings: (0..<count).map { index in
          let bytes = UnsafeRawBufferPointer(
            rebasing: data.bytes[index * width..<(index + 1) * width])
          let used = (bytes.lastIndex { $0 != 0 } ?? -1) + 1
          return String(decoding: bytes.prefix(used), as: UTF8.self)
        }, shape: stored)
    }
    return header.isFortranOrder && stored.count > 1 ? try reversedAxes(tensor) : tensor
  }

  private static func plain(
    _ data: ByteView, _ type: DataType, _ shape: [Int], _ isBigEndian: Bool
  ) throws(ApusError) -> Tensor {
    // The parts of a complex number are swapped one by one.
    let unit = (type.isComplex ? type.bitWidth / 2 : type.bitWidth) / 8
    let address = UInt(bitPattern: data.bytes.baseAddress)
    if !(isBigEndian && unit > 1), address % UInt(unit) == 0 {
      let storage = TensorStorage(viewing: data.bytes, owner: data.owner)
      return try Tensor(type, shape: shape, storage: storage)
    }
    let tensor = try Tensor(type, shape: shape)
    let out = tensor.mutableBytes
    out.copyMemory(from: data.bytes)
    if isBigEndian, unit > 1 {
      for start in stride(from: 0, to: out.count, by: unit) {
        for index in 0..<unit / 2 { out.swapAt(start + index, start + unit - 1 - index) }
      }
    }
    return tensor
  }

  private static func utf32(_ data: ByteView, _ offset: Int, _ units: Int, _ isBigEndian: Bool)
    -> String
  {
    var result = String.UnicodeScalarView()
    var zeros = 0
    for unit in 0..<units {
      let raw = data.little(offset + unit * 4, as: UInt32.self) ?? 0
      let value = isBigEndian ? raw.byteSwapped : raw
      if value == 0 {
        zeros += 1
        continue
      }
      for _ in 0..<zeros { result.append("\0") }
      zeros = 0
      result.append(Unicode.Scalar(value) ?? "\u{fffd}")
    }
    return String(result)
  }

  /// The tensor with its axes in reverse order.
  private static func reversedAxes(_ tensor: Tensor) throws(ApusError) -> Tensor {
    let shape = Array(tensor.shape.reversed())
    if tensor.count == 0 { return try tensor.reshaped(shape) }
    // The stride of output axis i is the input's stride of axis (rank - 1 - i).
    var strides = [Int](repeating: 1, count: shape.count)
    for axis in 1..<shape.count { strides[axis] = strides[axis - 1] * shape[axis - 1] }
    let count = tensor.count
    var index = [Int](repeating: 0, count: shape.count)
    var source = 0
    func advance() {
      var axis = shape.count - 1
      while axis >= 0 {
        index[axis] += 1
        source += strides[axis]
        if index[axis] < shape[axis] { return }
        source -= strides[axis] * shape[axis]
        index[axis] = 0
        axis -= 1
      }
    }
    if tensor.dataType == .string {
      let from = tensor.strings
      var to: [String] = []
      to.reserveCapacity(count)
      for _ in 0..<count {
        to.append(from[source])
        advance()
      }
      return try Tensor(strings: to, shape: shape)
    }
    let result = try Tensor(tensor.dataType, shape: shape)
    let width = tensor.dataType.bitWidth / 8
    let (from, to) = (tensor.bytes, result.mutableBytes)
    for element in 0..<count {
      for byte in 0..<width { to[element * width + byte] = from[source * width + byte] }
      advance()
    }
    return result
  }
}
