// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Element conversion: any numeric type to and from `Double` and `Int64` arrays. This is the
/// arithmetic the reference semantics are written in; kernels never come here.
extension Tensor {
  /// All elements as `Double` (complex numbers as pairs; 64-bit integers rounded; texts as NaN).
  public func doubles() -> [Double] {
    switch dataType {
    case .float32: return withElements(of: Float.self) { $0.map(Double.init) }
    case .float64: return withElements(of: Double.self) { Array($0) }
    case .float16:
      return withElements(of: UInt16.self) { $0.map { Double(SmallFloat.float(fromHalf: $0)) } }
    case .bfloat16:
      return withElements(of: UInt16.self) { $0.map { Double(SmallFloat.float(fromBFloat16: $0)) } }
    case .complex64:
      return bytes.withMemoryRebound(to: Float.self) { $0.prefix(count * 2).map(Double.init) }
    case .complex128:
      return bytes.withMemoryRebound(to: Double.self) { Array($0.prefix(count * 2)) }
    case .float8e8m0:
      return withElements(of: UInt8.self) {
        $0.map { $0 == 0xff ? Double.nan : SmallFloat.powerOfTwo(Int($0) - 127) }
      }
    case .uint64: return withElements(of: UInt64.self) { $0.map { Double($0) } }
    case .string: return Array(repeating: .nan, count: count)
    default:
      if let format = dataType.smallFloat {
        return integers(rawBits: true).map { format.decode(UInt16(truncatingIfNeeded: $0)) }
      }
      return integers().map(Double.init)
    }
  }

  /// Every `step`th element from position `first` on as `Double`, `count` in all.
  package func doubles(from first: Int, by step: Int, count: Int) -> [Double] {
    func take<Element>(_ type: Element.Type, _ value: (Element) -> Double) -> [Double] {
      withElements(of: type) { all in (0..<count).map { value(all[first + $0 * step]) } }
    }
    switch dataType {
    case .float32: return take(Float.self) { Double($0) }
    case .bfloat16: return take(UInt16.self) { Double(SmallFloat.float(fromBFloat16: $0)) }
    case .float16: return take(UInt16.self) { Double(SmallFloat.float(fromHalf: $0)) }
    case .uint8: return take(UInt8.self) { Double($0) }
    case .int8: return take(Int8.self) { Double($0) }
    default:
      let all = doubles()
      return (0..<count).map { all[first + $0 * step] }
    }
  }

  /// All elements as `Int64`: floats truncated towards zero and clamped, `uint64` by its bits, zeros
  /// for texts and complex numbers.
  public func integers() -> [Int64] {
    dataType.isFloat ? doubles().map(Int64.init(clamping:)) : integers(rawBits: false)
  }

  private func integers(rawBits: Bool) -> [Int64] {
    switch dataType {
    case .int64: return withElements(of: Int64.self) { Array($0) }
    case .uint64: return withElements(of: UInt64.self) { $0.map(Int64.init(bitPattern:)) }
    case .int32: return withElements(of: Int32.self) { $0.map(Int64.init) }
    case .uint32: return withElements(of: UInt32.self) { $0.map(Int64.init) }
    case .int16: return withElements(of: Int16.self) { $0.map(Int64.init) }
    case .uint16: return withElements(of: UInt16.self) { $0.map(Int64.init) }
    case .int8: return withElements(of: Int8.self) { $0.map(Int64.init) }
    case .bool: return withElements(of: UInt8.self) { $0.map { $0 == 0 ? 0 : 1 } }
    case .uint8, .float8e4m3fn, .float8e4m3fnuz, .float8e5m2, .float8e5m2fnuz, .float8e8m0:
      return withElements(of: UInt8.self) { $0.map(Int64.init) }
    case .int4, .uint4, .int2, .uint2, .float4e2m1:
      let raw = bytes
      let bits = dataType.bitWidth
      let perByte = 8 / bits
      let mask = Int64((1 << bits) - 1)
      let signed = dataType.isSignedInteger
      return (0..<count).map { index in
        let field = (Int64(raw[index / perByte]) >> Int64(index % perByte * bits)) & mask
        return signed && field >> Int64(bits - 1) == 1 ? field - mask - 1 : field
      }
    default: return Array(repeating: 0, count: count)
    }
  }

  /// A tensor of these values, rounded to the element type: floats to nearest even (8-bit and
  /// smaller saturate when `saturate`), integers truncated towards zero and wrapped.
  public init(
    _ values: [Double], _ dataType: DataType, shape: [Int], saturate: Bool = true
  ) throws(ApusError) {
    guard dataType != .string else {
      throw ApusError(.typeMismatch, "numbers cannot become texts")
    }
    try self.init(dataType, shape: shape)
    let count = self.count
    guard values.count != count * 2 || dataType.isComplex || count == 0 else {
      throw ApusError(.typeMismatch, "complex numbers where real ones are wanted")
    }
    guard values.count == (dataType.isComplex ? count * 2 : count) else {
      throw ApusError(.internalError, "\(values.count) values for the shape \(shape)")
    }
    let out = mutableBytes
    switch dataType {
    case .float32, .complex64:
      out.withMemoryRebound(to: Float.self) { to in
        for index in values.indices { to[index] = Float(values[index]) }
      }
    case .float64, .complex128:
      out.withMemoryRebound(to: Double.self) { to in
        for index in values.indices { to[index] = values[index] }
      }
    case .float8e8m0:
      for (index, value) in values.enumerated() { out[index] = Self.e8m0(value) }
    default:
      guard let format = dataType.smallFloat else {
        let isUnsigned64 = dataType == .uint64
        self.storeBits(
          values.map {
            isUnsigned64 && $0 >= 0x1p63
              ? Int64(bitPattern: UInt64(min($0, 0x1.fffffffffffffp63)))
              : Int64(clamping: $0)
          })
        return
      }
      let wide = dataType.bitWidth == 16
      storeBits(values.map { Int64(format.encode($0, saturate: saturate && !wide)) })
    }
  }

  /// A tensor of these values, wrapped to the element type (non-zero is true for `bool`).
  public init(_ values: [Int64], _ dataType: DataType, shape: [Int]) throws(ApusError) {
    if dataType.isFloat || dataType.isComplex {
      try self.init(values.map(Double.init), dataType, shape: shape)
      return
    }
    guard dataType != .string else {
      throw ApusError(.typeMismatch, "numbers cannot become texts")
    }
    try self.init(dataType, shape: shape)
    guard values.count == count else {
      throw ApusError(.internalError, "\(values.count) values for the shape \(shape)")
    }
    storeBits(values)
  }

  private static func e8m0(_ value: Double) -> UInt8 {
    guard value > 0 else { return value.isNaN ? 0xff : 0 }
    guard value.isFinite else { return 0xfe }
    // Upwards, as scales are rounded: what is divided by one must not overflow.
    let exponent = Int((value.exponent)) + (value.significand > 1 ? 1 : 0)
    return UInt8(max(0, min(254, exponent + 127)))
  }

  private func storeBits(_ values: [Int64]) {
    let out = mutableBytes
    switch dataType.bitWidth {
    case 64:
      out.withMemoryRebound(to: Int64.self) { to in
        for index in values.indices { to[index] = values[index] }
      }
    case 32:
      out.withMemoryRebound(to: Int32.self) { to in
        for index in values.indices { to[index] = Int32(truncatingIfNeeded: values[index]) }
      }
    case 16:
      out.withMemoryRebound(to: Int16.self) { to in
        for index in values.indices { to[index] = Int16(truncatingIfNeeded: values[index]) }
      }
    case 8:
      let isBool = dataType == .bool
      for index in values.indices {
        out[index] =
          isBool ? (values[index] == 0 ? 0 : 1) : UInt8(truncatingIfNeeded: values[index])
      }
    default:
      let bits = dataType.bitWidth
      let perByte = 8 / bits
      let mask = UInt8((1 << bits) - 1)
      for index in values.indices {
        out[index / perByte] |=
          (UInt8(truncatingIfNeeded: values[index]) & mask) << UInt8(index % perByte * bits)
      }
    }
  }
}

extension DataType {
  /// The binary format of the 16-, 8- and 4-bit floats.
  package var smallFloat: SmallFloat.Format? {
    switch self {
    case .float16: .float16
    case .bfloat16: .bfloat16
    case .float8e4m3fn: .e4m3fn
    case .float8e4m3fnuz: .e4m3fnuz
    case .float8e5m2: .e5m2
    case .float8e5m2fnuz: .e5m2fnuz
    case .float4e2m1: .e2m1
    default: nil
    }
  }
}

extension Int64 {
  /// The value truncated towards zero, clamped to the range; zero for NaN.
  @inlinable package init(clamping value: Double) {
    if value.isNaN {
      self = 0
    } else if value >= 0x1p63 {
      self = .max
    } else if value < -0x1p63 {
      self = .min
    } else {
      self = Int64(value)
    }
  }
}
