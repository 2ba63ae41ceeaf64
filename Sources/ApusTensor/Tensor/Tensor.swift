// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// A dense, row-major array of elements. Copies share memory; once a tensor has been handed to
/// anyone else its bytes must not change.
public struct Tensor: Sendable {
  /// The element type.
  public let dataType: DataType
  /// The sizes, outermost first; empty for a scalar.
  public let shape: [Int]
  /// The memory.
  public let storage: TensorStorage
  /// Where the elements begin in the memory.
  public let byteOffset: Int

  /// Allocates a zeroed tensor.
  ///
  /// - Throws: `resource-limit` when the size overflows or is not available.
  public init(_ dataType: DataType, shape: [Int]) throws(ApusError) {
    let count = try Self.checkedCount(shape)
    guard let bytes = dataType.byteCount(of: count) else {
      throw ApusError(.resourceLimit, "a tensor \(dataType)\(shape) is too large")
    }
    self.dataType = dataType
    self.shape = shape
    storage =
      dataType == .string
      ? TensorStorage(strings: Array(repeating: "", count: count))
      : try TensorStorage(byteCount: bytes)
    byteOffset = 0
  }

  /// A view of existing memory.
  ///
  /// - Throws: `invalid-argument` when the memory is too small for the shape.
  public init(_ dataType: DataType, shape: [Int], storage: TensorStorage, byteOffset: Int = 0)
    throws(ApusError)
  {
    let count = try Self.checkedCount(shape)
    let have = dataType == .string ? storage.strings.count : storage.byteCount
    let need = dataType == .string ? count : dataType.byteCount(of: count)
    guard let need, byteOffset >= 0, need <= have, byteOffset <= have - need else {
      throw ApusError(
        .invalidArgument, "\(dataType)\(shape) does not fit \(have) bytes from offset \(byteOffset)")
    }
    self.dataType = dataType
    self.shape = shape
    self.storage = storage
    self.byteOffset = byteOffset
  }

  /// A string tensor.
  public init(strings: [String], shape: [Int]) throws(ApusError) {
    try self.init(.string, shape: shape, storage: TensorStorage(strings: strings))
  }

  /// The number of elements a shape has.
  ///
  /// - Throws: `resource-limit` for a negative size or an overflowing product.
  public static func checkedCount(_ shape: [Int]) throws(ApusError) -> Int {
    var count = 1
    for size in shape {
      let (product, overflow) = count.multipliedReportingOverflow(by: size)
      guard size >= 0, !overflow else {
        throw ApusError(.resourceLimit, "the shape \(shape) is not a possible tensor shape")
      }
      count = product
    }
    return count
  }

  /// The number of dimensions.
  public var rank: Int { shape.count }

  /// The number of elements.
  public var count: Int { shape.reduce(1, &*) }

  /// The number of bytes of the elements.
  public var byteCount: Int { dataType.byteCount(of: count) ?? 0 }

  /// The type with all sizes known.
  public var type: TensorType { TensorType(dataType, shape: shape) }

  /// The bytes of the elements; valid while the tensor lives.
  public var bytes: UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(start: storage.base + byteOffset, count: byteCount)
  }

  /// The bytes for filling a tensor that nobody else has seen yet.
  public var mutableBytes: UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: storage.base + byteOffset, count: byteCount)
  }

  /// The elements of a string tensor.
  public var strings: [String] {
    dataType == .string ? Array(storage.strings[byteOffset..<(byteOffset + count)]) : []
  }

  /// The same elements in another shape.
  ///
  /// - Throws: `invalid-argument` when the counts differ.
  public func reshaped(_ shape: [Int]) throws(ApusError) -> Tensor {
    guard try Self.checkedCount(shape) == count else {
      throw ApusError(
        .invalidArgument, "\(self.shape) has \(count) elements and cannot become \(shape)")
    }
    return try Tensor(dataType, shape: shape, storage: storage, byteOffset: byteOffset)
  }

  /// The same bits read as another element type of the same width.
  public func bitcast(to dataType: DataType) throws(ApusError) -> Tensor {
    try Tensor(dataType, shape: shape, storage: storage, byteOffset: byteOffset)
  }

  /// Calls `body` with the elements as `Element`s; memory need not be aligned for the element.
  public func withElements<Element, Result>(
    of type: Element.Type = Element.self, _ body: (UnsafeBufferPointer<Element>) throws -> Result
  ) rethrows -> Result {
    let raw = bytes
    let address = UInt(bitPattern: raw.baseAddress!)
    if address % UInt(MemoryLayout<Element>.alignment) == 0 {
      return try body(
        UnsafeBufferPointer(
          start: raw.baseAddress!.assumingMemoryBound(to: Element.self), count: count))
    }
    let copy = UnsafeMutableBufferPointer<Element>.allocate(capacity: max(1, count))
    defer { copy.deallocate() }
    UnsafeMutableRawPointer(copy.baseAddress!).copyMemory(
      from: raw.baseAddress!, byteCount: min(raw.count, count * MemoryLayout<Element>.stride))
    return try body(UnsafeBufferPointer(start: copy.baseAddress!, count: count))
  }
}
