// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The element type of a tensor. Raw values are stable: they are written into engine files and
/// cross the C interface.
public enum DataType: UInt8, Sendable, Hashable, CaseIterable {
  case float32 = 1
  case uint8 = 2
  case int8 = 3
  case uint16 = 4
  case int16 = 5
  case int32 = 6
  case int64 = 7
  case string = 8
  case bool = 9
  case float16 = 10
  case float64 = 11
  case uint32 = 12
  case uint64 = 13
  case complex64 = 14
  case complex128 = 15
  case bfloat16 = 16
  case float8e4m3fn = 17
  case float8e4m3fnuz = 18
  case float8e5m2 = 19
  case float8e5m2fnuz = 20
  case uint4 = 21
  case int4 = 22
  case float4e2m1 = 23
  case float8e8m0 = 24
  case uint2 = 25
  case int2 = 26
}

extension DataType: CustomStringConvertible {
  /// The short name used in graph text, tactic names and reports.
  public var description: String {
    switch self {
    case .float64: "f64"
    case .float32: "f32"
    case .float16: "f16"
    case .bfloat16: "bf16"
    case .float8e4m3fn: "f8e4m3fn"
    case .float8e4m3fnuz: "f8e4m3fnuz"
    case .float8e5m2: "f8e5m2"
    case .float8e5m2fnuz: "f8e5m2fnuz"
    case .float8e8m0: "f8e8m0"
    case .float4e2m1: "f4e2m1"
    case .int64: "i64"
    case .int32: "i32"
    case .int16: "i16"
    case .int8: "i8"
    case .int4: "i4"
    case .int2: "i2"
    case .uint64: "u64"
    case .uint32: "u32"
    case .uint16: "u16"
    case .uint8: "u8"
    case .uint4: "u4"
    case .uint2: "u2"
    case .bool: "bool"
    case .string: "string"
    case .complex64: "c64"
    case .complex128: "c128"
    }
  }

  private static let byName: [String: DataType] = Dictionary(
    uniqueKeysWithValues: allCases.map { ($0.description, $0) })

  /// The type with this short name.
  public init?(name: some StringProtocol) {
    guard let type = Self.byName[String(name)] else { return nil }
    self = type
  }
}

extension DataType {
  /// The size of one element in bits; strings have no fixed size and report zero.
  public var bitWidth: Int {
    switch self {
    case .complex128: 128
    case .float64, .int64, .uint64, .complex64: 64
    case .float32, .int32, .uint32: 32
    case .float16, .bfloat16, .int16, .uint16: 16
    case .float8e4m3fn, .float8e4m3fnuz, .float8e5m2, .float8e5m2fnuz, .float8e8m0, .int8, .uint8,
      .bool:
      8
    case .int4, .uint4, .float4e2m1: 4
    case .int2, .uint2: 2
    case .string: 0
    }
  }

  /// Whether elements are smaller than a byte and packed, lowest bits first.
  public var isPacked: Bool { bitWidth > 0 && bitWidth < 8 }

  /// Whether the type is a real floating-point type of any width.
  public var isFloat: Bool {
    switch self {
    case .float64, .float32, .float16, .bfloat16, .float8e4m3fn, .float8e4m3fnuz, .float8e5m2,
      .float8e5m2fnuz, .float8e8m0, .float4e2m1:
      true
    default: false
    }
  }

  /// Whether the type is a signed or unsigned integer (`bool` is not).
  public var isInteger: Bool { isSignedInteger || isUnsignedInteger }

  /// Whether the type is a two's-complement integer.
  public var isSignedInteger: Bool {
    switch self {
    case .int64, .int32, .int16, .int8, .int4, .int2: true
    default: false
    }
  }

  /// Whether the type is an unsigned integer.
  public var isUnsignedInteger: Bool {
    switch self {
    case .uint64, .uint32, .uint16, .uint8, .uint4, .uint2: true
    default: false
    }
  }

  /// Whether the type is complex.
  public var isComplex: Bool { self == .complex64 || self == .complex128 }

  /// The bytes that `count` elements take, or nil when that overflows or `count` is negative.
  public func byteCount(of count: Int) -> Int? {
    guard count >= 0 else { return nil }
    let (bits, overflow) = count.multipliedReportingOverflow(by: bitWidth)
    guard !overflow, bits <= Int.max - 7 else { return nil }
    return (bits + 7) / 8
  }

  /// The smallest and largest value of an integer type, as `Int64` (`uint64` is cut at its maximum).
  public var integerRange: ClosedRange<Int64> {
    switch self {
    case .int8: -128...127
    case .int16: -32768...32767
    case .int32: Int64(Int32.min)...Int64(Int32.max)
    case .int4: -8...7
    case .int2: -2...1
    case .uint8: 0...255
    case .uint16: 0...65535
    case .uint32: 0...Int64(UInt32.max)
    case .uint4: 0...15
    case .uint2: 0...3
    case .bool: 0...1
    case .uint64: 0...Int64.max
    default: Int64.min...Int64.max
    }
  }
}
