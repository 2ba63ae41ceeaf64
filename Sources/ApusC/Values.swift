// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// A value behind a handle, with the parts that C needs stable addresses of.
final class ValueHandle: Sendable {
  let value: RuntimeValue
  let dims: CDims
  private let strings: [CText]

  init(_ value: RuntimeValue) {
    self.value = value
    dims = CDims(value.tensor?.shape.map(Int64.init) ?? [])
    strings = value.tensor?.strings.map(CText.init) ?? []
  }

  func string(_ index: Int) throws(ApusError) -> CText {
    guard strings.indices.contains(index) else {
      throw ApusError(.invalidArgument, "string \(index) of a value with \(strings.count) strings")
    }
    return strings[index]
  }
}

/// Sizes with a stable address; immutable.
final class CDims: @unchecked Sendable {
  let values: [Int64]
  private let storage: UnsafeMutableBufferPointer<Int64>

  init(_ dims: [Int64]) {
    values = dims
    storage = .allocate(capacity: max(1, dims.count))
    _ = storage.initialize(from: dims)
  }

  var pointer: UnsafePointer<Int64> { UnsafePointer(storage.baseAddress!) }

  deinit { storage.deallocate() }
}

/// Calls the caller's release function when the last tensor over its memory is gone.
private final class BorrowedMemory {
  private let release: apus_release
  private let user: UnsafeMutableRawPointer?

  init(_ release: @escaping apus_release, _ user: UnsafeMutableRawPointer?) {
    self.release = release
    self.user = user
  }

  deinit { release(user) }
}

/// The element type with this number.
func dataType(_ number: apus_dtype) throws(ApusError) -> DataType {
  guard let raw = UInt8(exactly: number), let type = DataType(rawValue: raw) else {
    throw ApusError(.invalidArgument, "\(number) is not the number of an element type")
  }
  return type
}

/// The sizes a caller passed.
func shape(rank: Int32, _ dims: UnsafePointer<Int64>?) throws(ApusError) -> [Int] {
  guard rank >= 0 else { throw ApusError(.invalidArgument, "the rank is \(rank)") }
  guard rank > 0 else { return [] }
  guard let dims else { throw missing("dims") }
  return UnsafeBufferPointer(start: dims, count: Int(rank)).map { Int($0) }
}

/// A tensor over a caller's memory.
func borrowedTensor(_ pointer: UnsafePointer<apus_tensor>?, owner: AnyObject?) throws(ApusError)
  -> Tensor
{
  guard let tensor = pointer?.pointee else { throw missing("tensor") }
  let type = try dataType(tensor.dtype)
  let shape = try shape(rank: tensor.rank, tensor.dims)
  guard type != .string else {
    throw ApusError(
      .invalidArgument, "strings cannot be passed as plain memory",
      hint: "make a value with apus_value_make_strings")
  }
  let count = try Tensor.checkedCount(shape)
  guard let need = type.byteCount(of: count), need == tensor.byte_count else {
    throw ApusError(
      .invalidArgument, "\(tensor.byte_count) bytes were passed for a tensor \(type)\(shape)")
  }
  guard tensor.data != nil || need == 0 else { throw missing("data") }
  let bytes = UnsafeRawBufferPointer(start: tensor.data, count: need)
  return try Tensor(type, shape: shape, storage: TensorStorage(viewing: bytes, owner: owner))
}

/// Fills the C description of a tensor whose sizes live at `dims`.
func describe(_ tensor: Tensor, dims: CDims, into out: UnsafeMutablePointer<apus_tensor>) {
  let isString = tensor.dataType == .string
  out.pointee = apus_tensor(
    dtype: apus_dtype(tensor.dataType.rawValue), rank: Int32(tensor.rank), dims: dims.pointer,
    data: isString ? nil : tensor.bytes.baseAddress, byte_count: isString ? 0 : tensor.byteCount)
}

@c @implementation
public func apus_value_make_tensor(
  _ tensor: UnsafePointer<apus_tensor>?, _ release: apus_release?, _ user: UnsafeMutableRawPointer?,
  _ value: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    guard let value else { throw missing("value") }
    // Checked once without an owner, so that a refused tensor does not release the memory.
    var made = try borrowedTensor(tensor, owner: nil)
    if let release { made = try borrowedTensor(tensor, owner: BorrowedMemory(release, user)) }
    value.pointee = handle(ValueHandle(.tensor(made)))
  }
}

@c @implementation
public func apus_value_make_strings(
  _ rank: Int32, _ dims: UnsafePointer<Int64>?,
  _ strings: UnsafePointer<UnsafePointer<CChar>?>?, _ lengths: UnsafePointer<Int>?,
  _ value: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    guard let value else { throw missing("value") }
    let shape = try shape(rank: rank, dims)
    let count = try Tensor.checkedCount(shape)
    guard strings != nil || count == 0 else { throw missing("strings") }
    var elements: [String] = []
    for index in 0..<count {
      guard let pointer = strings?[index] else { throw missing("strings[\(index)]") }
      guard let lengths else {
        elements.append(String(cString: pointer))
        continue
      }
      let bytes = UnsafeRawBufferPointer(start: pointer, count: lengths[index])
      elements.append(String(decoding: bytes, as: UTF8.self))
    }
    value.pointee = handle(ValueHandle(.tensor(try Tensor(strings: elements, shape: shape))))
  }
}

@c @implementation
public func apus_value_make_sequence(
  _ dtype: apus_dtype, _ items: UnsafePointer<OpaquePointer?>?, _ count: Int,
  _ value: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    guard let value else { throw missing("value") }
    guard items != nil || count == 0 else { throw missing("items") }
    var values: [RuntimeValue] = []
    for index in 0..<count {
      values.append(try object(items?[index], ValueHandle.self, named: "items[\(index)]").value)
    }
    let element = try elementType(dtype, of: values.first)
    value.pointee = handle(ValueHandle(.sequence(values, of: element)))
  }
}

@c @implementation
public func apus_value_make_optional(
  _ dtype: apus_dtype, _ item: OpaquePointer?, _ value: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    guard let value else { throw missing("value") }
    let content = try item.map { (item) throws(ApusError) in
      try object(item, ValueHandle.self, named: "item").value
    }
    let element = try elementType(dtype, of: content)
    value.pointee = handle(ValueHandle(.optional(content, of: element)))
  }
}

/// The type of a container's items: that of one of them with its sizes left open, else a tensor.
private func elementType(
  _ dtype: apus_dtype, of item: RuntimeValue?
) throws(ApusError) -> ValueType {
  if let type = item?.type, type.tensor == nil { return type }
  let type = try dataType(dtype)
  if let tensor = item?.tensor, tensor.dataType != type {
    throw ApusError(.typeMismatch, "a container of \(type) was given an item of \(tensor.dataType)")
  }
  return .tensor(TensorType(type, nil))
}

@c @implementation
public func apus_value_get_kind(_ value: OpaquePointer?) -> apus_value_kind {
  guard let handle = try? object(value, ValueHandle.self, named: "value") else {
    return apus_value_kind(APUS_KIND_TENSOR)
  }
  return kind(of: handle.value.type)
}

/// The number of a type's kind.
func kind(of type: ValueType) -> apus_value_kind {
  switch type {
  case .tensor: apus_value_kind(APUS_KIND_TENSOR)
  case .sequence: apus_value_kind(APUS_KIND_SEQUENCE)
  case .optional: apus_value_kind(APUS_KIND_OPTIONAL)
  }
}

@c @implementation
public func apus_value_get_tensor(
  _ value: OpaquePointer?, _ tensor: UnsafeMutablePointer<apus_tensor>?
) -> apus_status {
  status { () throws(ApusError) in
    let handle = try object(value, ValueHandle.self, named: "value")
    guard let tensor else { throw missing("tensor") }
    guard let content = handle.value.tensor else {
      throw ApusError(.typeMismatch, "the value is \(handle.value.type), not a tensor")
    }
    describe(content, dims: handle.dims, into: tensor)
  }
}

@c @implementation
public func apus_value_get_string(
  _ value: OpaquePointer?, _ index: Int, _ bytes: UnsafeMutablePointer<UnsafePointer<CChar>?>?,
  _ byte_count: UnsafeMutablePointer<Int>?
) -> apus_status {
  status { () throws(ApusError) in
    let string = try object(value, ValueHandle.self, named: "value").string(index)
    guard let bytes else { throw missing("bytes") }
    bytes.pointee = string.pointer
    byte_count?.pointee = string.byteCount
  }
}

@c @implementation
public func apus_value_item_count(_ value: OpaquePointer?) -> Int {
  switch (try? object(value, ValueHandle.self, named: "value"))?.value {
  case .sequence(let items, _): items.count
  case .optional(.some, _): 1
  default: 0
  }
}

@c @implementation
public func apus_value_get_item(
  _ value: OpaquePointer?, _ index: Int, _ item: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let container = try object(value, ValueHandle.self, named: "value").value
    guard let item else { throw missing("item") }
    let items: [RuntimeValue] =
      switch container {
      case .sequence(let items, _): items
      case .optional(let content?, _): [content]
      default: []
      }
    guard items.indices.contains(index) else {
      throw ApusError(.invalidArgument, "item \(index) of a value with \(items.count) items")
    }
    item.pointee = handle(ValueHandle(items[index]))
  }
}

@c @implementation
public func apus_value_destroy(_ value: OpaquePointer?) {
  release(value, ValueHandle.self)
}
