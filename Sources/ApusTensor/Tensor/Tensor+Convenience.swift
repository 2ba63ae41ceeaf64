// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

extension Tensor {
  /// A `float32` tensor.
  public init(_ values: [Float], shape: [Int]) throws(ApusError) {
    try self.init(.float32, shape: shape)
    guard values.count == count else {
      throw ApusError(.invalidArgument, "\(values.count) values for the shape \(shape)")
    }
    values.withUnsafeBytes { mutableBytes.copyMemory(from: $0) }
  }

  /// A vector of `int64`, as shapes and axes are passed.
  public static func vector(_ values: [Int]) throws(ApusError) -> Tensor {
    try Tensor(values.map(Int64.init), .int64, shape: [values.count])
  }

  /// A scalar.
  public static func scalar(_ value: Double, _ dataType: DataType) throws(ApusError) -> Tensor {
    try Tensor([value], dataType, shape: [])
  }

  /// The elements as `Float`.
  public func floats() -> [Float] {
    dataType == .float32 ? withElements(of: Float.self) { Array($0) } : doubles().map(Float.init)
  }

  /// The elements as `Int`.
  public func ints() -> [Int] { integers().map { Int($0) } }

  /// A tensor with the same elements in memory of its own.
  public func copied() throws(ApusError) -> Tensor {
    if dataType == .string { return try Tensor(strings: strings, shape: shape) }
    let copy = try Tensor(dataType, shape: shape)
    copy.mutableBytes.copyMemory(from: bytes)
    return copy
  }

  /// The elements converted to another type as ONNX `Cast` does it.
  public func converted(to target: DataType, saturate: Bool = true) throws(ApusError) -> Tensor {
    if target == dataType { return self }
    if let direct = try convertedDirectly(to: target) { return direct }
    if target == .bool {
      if dataType.isInteger { return try Tensor(integers(), .bool, shape: shape) }
      return try Tensor(doubles().map { $0 == 0 ? Int64(0) : 1 }, .bool, shape: shape)
    }
    if dataType.isFloat || target.isFloat || dataType.isComplex || target.isComplex {
      return try Tensor(doubles(), target, shape: shape, saturate: saturate)
    }
    return try Tensor(integers(), target, shape: shape)
  }

  /// Conversions of whole networks' weights: without a detour over numbers of eight bytes.
  private func convertedDirectly(to target: DataType) throws(ApusError) -> Tensor? {
    guard dataType == .float32, target == .bfloat16 || target == .float16 else { return nil }
    let result = try Tensor(target, shape: shape)
    withElements(of: Float.self) { from in
      result.mutableBytes.withMemoryRebound(to: UInt16.self) { to in
        if target == .bfloat16 {
          for index in from.indices { to[index] = SmallFloat.bfloat16(from[index]) }
        } else {
          for index in from.indices { to[index] = SmallFloat.half(from[index]) }
        }
      }
    }
    return result
  }
}
