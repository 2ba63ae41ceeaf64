// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// A tensor being filled with whole elements of other tensors, whatever their type: bytes, packed
/// fields of less than a byte, or strings.
struct ElementBuffer {
  private let dataType: DataType
  private let shape: [Int]
  private var tensor: Tensor?
  private var strings: [String] = []

  /// A zeroed buffer (empty strings).
  init(_ dataType: DataType, shape: [Int]) throws(ApusError) {
    self.dataType = dataType
    self.shape = shape
    if dataType == .string {
      strings = Array(repeating: "", count: try Tensor.checkedCount(shape))
    } else {
      tensor = try Tensor(dataType, shape: shape)
    }
  }

  /// A buffer that starts with the elements of `source`.
  init(copying source: Tensor) throws(ApusError) {
    dataType = source.dataType
    shape = source.shape
    if source.dataType == .string { strings = source.strings } else { tensor = try source.copied() }
  }

  /// The filled tensor.
  func finished() throws(ApusError) -> Tensor {
    if let tensor { return tensor }
    return try Tensor(strings: strings, shape: shape)
  }

  /// Copies the elements `pairs` names, `(target, source)`, from a tensor of the same type.
  /// All indices must be inside.
  mutating func copy(
    from source: Tensor, count: Int, _ pair: (Int) -> (target: Int, source: Int)
  ) {
    guard let tensor else {
      let from = source.strings
      for index in 0..<count {
        let places = pair(index)
        strings[places.target] = from[places.source]
      }
      return
    }
    switch dataType.bitWidth {
    case 8: Self.move(UInt8.self, source, tensor, count, pair)
    case 16: Self.move(UInt16.self, source, tensor, count, pair)
    case 32: Self.move(UInt32.self, source, tensor, count, pair)
    case 64: Self.move(UInt64.self, source, tensor, count, pair)
    case 128: Self.move(SIMD2<UInt64>.self, source, tensor, count, pair)
    default:
      let bits = dataType.bitWidth
      let from = source.bytes
      let to = tensor.mutableBytes
      for index in 0..<count {
        let places = pair(index)
        Self.setField(to, places.target, bits, Self.field(from, places.source, bits))
      }
    }
  }

  /// Copies runs of `length` neighbouring elements, `(target, source)` being where they start.
  mutating func copyRuns(
    from source: Tensor, length: Int, count: Int,
    _ pair: (Int) -> (target: Int, source: Int)
  ) {
    guard length > 0 else { return }
    guard let tensor, dataType.bitWidth >= 8 else {
      copy(from: source, count: count &* length) { index in
        let start = pair(index / length)
        return (start.target &+ index % length, start.source &+ index % length)
      }
      return
    }
    guard count > 0, let to = tensor.mutableBytes.baseAddress,
      let from = source.bytes.baseAddress
    else { return }
    let size = dataType.bitWidth / 8
    for index in 0..<count {
      let start = pair(index)
      (to + start.target &* size).copyMemory(
        from: from + start.source &* size, byteCount: length &* size)
    }
  }

  private static func move<Word: BitwiseCopyable>(
    _ word: Word.Type, _ source: Tensor, _ target: Tensor, _ count: Int,
    _ pair: (Int) -> (target: Int, source: Int)
  ) {
    let size = MemoryLayout<Word>.size
    let from = source.bytes
    let to = target.mutableBytes
    for index in 0..<count {
      let places = pair(index)
      let value = from.loadUnaligned(fromByteOffset: places.source &* size, as: Word.self)
      to.storeBytes(of: value, toByteOffset: places.target &* size, as: Word.self)
    }
  }

  /// The packed field at position `index`.
  static func field(_ bytes: UnsafeRawBufferPointer, _ index: Int, _ bits: Int) -> UInt8 {
    let perByte = 8 / bits
    return (bytes[index / perByte] >> UInt8(index % perByte * bits)) & UInt8((1 << bits) - 1)
  }

  /// Replaces the packed field at position `index`.
  static func setField(
    _ bytes: UnsafeMutableRawBufferPointer, _ index: Int, _ bits: Int, _ value: UInt8
  ) {
    let perByte = 8 / bits
    let shift = UInt8(index % perByte * bits)
    let mask = UInt8((1 << bits) - 1) << shift
    bytes[index / perByte] = (bytes[index / perByte] & ~mask) | (value << shift)
  }
}
