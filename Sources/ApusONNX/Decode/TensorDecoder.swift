// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusProto
import ApusTensor

/// Turns serialised tensors into tensors, each converted once into its final place; data in the
/// model file or an external file stays mapped where its address allows it.
struct TensorDecoder {
  let view: ByteView
  let external: ExternalDataStore

  init(_ file: ModelFile) {
    view = file.view
    external = file.external
  }

  /// The tensor.
  ///
  /// - Throws: `malformed-file` naming the tensor.
  func tensor(_ proto: ONNXTensorProto, name: String? = nil) throws(ApusError) -> Tensor {
    do {
      return try decode(proto)
    } catch {
      var named = error
      let label = name ?? proto.name
      named.message = "tensor '\(label)': \(error.message)"
      throw named
    }
  }

  private func decode(_ proto: ONNXTensorProto) throws(ApusError) -> Tensor {
    let type = try TypeDecoder.dataType(proto.dataType)
    var shape: [Int] = []
    for size in proto.dims {
      guard let size = Int(exactly: size), size >= 0 else {
        throw ApusError(.malformedFile, "a dimension is \(size)")
      }
      shape.append(size)
    }
    let count = try Tensor.checkedCount(shape)
    guard let byteCount = type.byteCount(of: count), byteCount <= 1 << 40 else {
      throw ApusError(.resourceLimit, "\(type)\(shape) is too large")
    }
    if type == .string { return try strings(proto, shape, count) }
    if proto.dataLocation == .external {
      let places = Dictionary(
        proto.externalData.map { ($0.key, $0.value) }, uniquingKeysWith: { first, _ in first })
      guard let location = places["location"] else {
        throw ApusError(.malformedFile, "its external data has no location")
      }
      let bytes = try external.bytes(
        location: location, offset: places["offset"], length: places["length"], expected: byteCount)
      return try place(bytes, type, shape)
    }
    if proto.hasLiftedOffset {
      guard let offset = Int(exactly: proto.liftedOffset),
        let length = Int(exactly: proto.liftedLength), let bytes = view.slice(offset, length)
      else { throw ApusError(.malformedFile, "its data lies outside the file") }
      try expect(bytes.count, byteCount, type, shape)
      return try place(bytes, type, shape)
    }
    if proto.hasRawData {
      try expect(proto.rawByteCount, byteCount, type, shape)
      let tensor = try Tensor(type, shape: shape)
      proto.copyRawData(to: tensor.mutableBytes)
      return normalised(tensor)
    }
    return try fields(proto, type, shape, count)
  }

  private func expect(_ have: Int, _ need: Int, _ type: DataType, _ shape: [Int]) throws(ApusError)
  {
    guard have != need else { return }
    throw ApusError(
      .malformedFile, "it has \(have) bytes of data, \(type)\(shape) needs \(need)",
      hint: "the model file is damaged or was written by a broken exporter")
  }

  /// A view of the bytes where they are aligned for their type, else a copy.
  private func place(_ bytes: ByteView, _ type: DataType, _ shape: [Int]) throws(ApusError)
    -> Tensor
  {
    let alignment = max(1, (type.isComplex ? type.bitWidth / 2 : type.bitWidth) / 8)
    if UInt(bitPattern: bytes.bytes.baseAddress) % UInt(alignment) == 0 {
      let storage = TensorStorage(viewing: bytes.bytes, owner: bytes.owner)
      let tensor = try Tensor(type, shape: shape, storage: storage)
      return type == .bool ? normalised(try tensor.copied()) : tensor
    }
    let tensor = try Tensor(type, shape: shape)
    tensor.mutableBytes.copyMemory(from: bytes.bytes)
    (bytes.owner as? MappedFile)?.release(bytes.bytes)
    return tensor
  }

  /// The tensor with truth values as exactly zero and one; the tensor must be fresh.
  private func normalised(_ tensor: Tensor) -> Tensor {
    guard tensor.dataType == .bool else { return tensor }
    let bytes = tensor.mutableBytes
    for index in bytes.indices where bytes[index] > 1 { bytes[index] = 1 }
    return tensor
  }

  private func strings(_ proto: ONNXTensorProto, _ shape: [Int], _ count: Int) throws(ApusError)
    -> Tensor
  {
    let texts = proto.texts
    guard texts.count == count else {
      throw ApusError(
        .malformedFile, "it has \(texts.count) texts, the shape \(shape) needs \(count)")
    }
    return try Tensor(strings: texts, shape: shape)
  }

  /// Data in the typed repeated fields.
  private func fields(_ proto: ONNXTensorProto, _ type: DataType, _ shape: [Int], _ count: Int)
    throws(ApusError) -> Tensor
  {
    switch type {
    case .float32: return try copy(proto.floatData, count, type, shape)
    case .complex64: return try copy(proto.floatData, count * 2, type, shape)
    case .float64: return try copy(proto.doubleData, count, type, shape)
    case .complex128: return try copy(proto.doubleData, count * 2, type, shape)
    case .int64: return try copy(proto.int64Data, count, type, shape)
    case .uint64: return try copy(proto.uint64Data, count, type, shape)
    case .uint32:
      return try copy(
        proto.uint64Data.map { UInt32(truncatingIfNeeded: $0) }, count, type, shape)
    case .int32: return try copy(proto.int32Data, count, type, shape)
    case .bool: return try copy(proto.int32Data.map { $0 == 0 ? UInt8(0) : 1 }, count, type, shape)
    case .int16, .uint16, .float16, .bfloat16:
      return try copy(proto.int32Data.map { UInt16(truncatingIfNeeded: $0) }, count, type, shape)
    default:
      // One byte a number; types of less than a byte are packed already.
      let units = type.byteCount(of: count) ?? 0
      return try copy(proto.int32Data.map { UInt8(truncatingIfNeeded: $0) }, units, type, shape)
    }
  }

  private func copy<Element: BitwiseCopyable>(
    _ values: [Element], _ count: Int, _ type: DataType, _ shape: [Int]
  ) throws(ApusError) -> Tensor {
    guard values.count == count else {
      throw ApusError(
        .malformedFile, "it has \(values.count) values, \(type)\(shape) needs \(count)",
        hint: "the model file is damaged or was written by a broken exporter")
    }
    let tensor = try Tensor(type, shape: shape)
    let target = tensor.mutableBytes
    values.withUnsafeBytes { target.copyMemory(from: UnsafeRawBufferPointer($0)) }
    return tensor
  }

  // MARK: Sparse tensors

  /// The dense form of a sparse tensor.
  func dense(_ proto: ONNXSparseTensorProto, limit: Int = 1 << 32) throws(ApusError) -> Tensor {
    let values = try tensor(proto.values)
    let indices = try tensor(proto.indices, name: "\(proto.values.name) (indices)")
    var shape: [Int] = []
    for size in proto.dims {
      guard let size = Int(exactly: size), size >= 0 else {
        throw ApusError(.malformedFile, "a dimension of a sparse tensor is \(size)")
      }
      shape.append(size)
    }
    let count = try Tensor.checkedCount(shape)
    guard indices.dataType == .int64, values.rank == 1, values.dataType.bitWidth >= 8,
      indices.shape == [values.count] || indices.shape == [values.count, shape.count]
    else { throw ApusError(.malformedFile, "a sparse tensor's indices do not fit its values") }
    guard let byteCount = values.dataType.byteCount(of: count), byteCount <= limit else {
      throw ApusError(.resourceLimit, "the sparse tensor \(shape) is too large in dense form")
    }
    let dense = try Tensor(values.dataType, shape: shape)
    let places = indices.integers()
    let width = values.dataType.bitWidth / 8
    let (from, to) = (values.bytes, dense.mutableBytes)
    for element in 0..<values.count {
      var place = indices.rank == 1 ? places[element] : 0
      if indices.rank == 2 {
        for axis in shape.indices {
          let index = places[element * shape.count + axis]
          guard index >= 0, index < shape[axis] else {
            throw ApusError(.malformedFile, "a sparse tensor has an index outside its shape")
          }
          place = place * Int64(shape[axis]) + index
        }
      }
      guard place >= 0, place < count else {
        throw ApusError(.malformedFile, "a sparse tensor has an index outside its shape")
      }
      for byte in 0..<width { to[Int(place) * width + byte] = from[element * width + byte] }
    }
    return dense
  }
}
