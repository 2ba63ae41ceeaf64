// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Conversions between `Float`/`Double` and the 16-, 8- and 4-bit float formats.
///
/// Formats: IEEE 754 binary16; bfloat16; the OCP 8-bit formats E4M3 (finite, NaN at S.1111.111) and
/// E5M2, and their "fnuz" variants (no infinity, no negative zero, NaN at 0x80); E8M0 (power of two);
/// E2M1 (OCP MX).
package enum SmallFloat {
  /// The parameters of a binary format of at most 16 bits.
  package struct Format: Sendable {
    package let exponentBits: Int
    package let mantissaBits: Int
    package let bias: Int
    /// Infinity exists (all-ones exponent, zero mantissa).
    package let hasInfinity: Bool
    /// "fnuz": the only NaN is the sign bit alone and there is no negative zero.
    package let isUnsignedZero: Bool
    /// NaN exists.
    package let hasNaN: Bool

    package static let float16 = Format(
      exponentBits: 5, mantissaBits: 10, bias: 15, hasInfinity: true, isUnsignedZero: false,
      hasNaN: true)
    package static let bfloat16 = Format(
      exponentBits: 8, mantissaBits: 7, bias: 127, hasInfinity: true, isUnsignedZero: false,
      hasNaN: true)
    package static let e4m3fn = Format(
      exponentBits: 4, mantissaBits: 3, bias: 7, hasInfinity: false, isUnsignedZero: false,
      hasNaN: true)
    package static let e4m3fnuz = Format(
      exponentBits: 4, mantissaBits: 3, bias: 8, hasInfinity: false, isUnsignedZero: true,
      hasNaN: true)
    package static let e5m2 = Format(
      exponentBits: 5, mantissaBits: 2, bias: 15, hasInfinity: true, isUnsignedZero: false,
      hasNaN: true)
    package static let e5m2fnuz = Format(
      exponentBits: 5, mantissaBits: 2, bias: 16, hasInfinity: false, isUnsignedZero: true,
      hasNaN: true)
    package static let e2m1 = Format(
      exponentBits: 2, mantissaBits: 1, bias: 1, hasInfinity: false, isUnsignedZero: false,
      hasNaN: false)

    private var signShift: Int { exponentBits + mantissaBits }
    private var exponentMask: Int { (1 << exponentBits) - 1 }
    private var mantissaMask: Int { (1 << mantissaBits) - 1 }

    /// The bit pattern of not-a-number (of the largest finite value where the format has none).
    package var nanBits: UInt16 {
      if isUnsignedZero { return UInt16(1 << signShift) }
      if !hasNaN { return largestBits }
      if hasInfinity { return UInt16(exponentMask << mantissaBits | 1 << (mantissaBits - 1)) }
      return UInt16((1 << signShift) - 1)
    }

    /// The bit pattern of the largest finite value.
    package var largestBits: UInt16 {
      if hasInfinity { return UInt16((exponentMask << mantissaBits) - 1) }
      if isUnsignedZero || !hasNaN { return UInt16((1 << signShift) - 1) }
      return UInt16((1 << signShift) - 2)
    }

    /// The value of a bit pattern.
    package func decode(_ bits: UInt16) -> Double {
      let raw = Int(bits)
      let negative = (raw >> signShift) & 1 == 1
      let exponent = (raw >> mantissaBits) & exponentMask
      let mantissa = raw & mantissaMask
      let magnitude = raw & ((1 << signShift) - 1)
      if isUnsignedZero {
        if negative && magnitude == 0 { return .nan }
      } else if hasInfinity {
        if exponent == exponentMask {
          if mantissa != 0 { return .nan }
          return negative ? -.infinity : .infinity
        }
      } else if hasNaN && magnitude == (1 << signShift) - 1 {
        return .nan
      }
      let scale = exponent == 0 ? 1 - bias : exponent - bias
      let significand =
        exponent == 0 ? Double(mantissa) : Double(mantissa + (1 << mantissaBits))
      let value = significand * SmallFloat.powerOfTwo(scale - mantissaBits)
      return negative ? -value : value
    }

    /// The nearest bit pattern, ties to even. Values past the largest finite one saturate to it when
    /// `saturate` is set, else become infinity or, without one, NaN.
    package func encode(_ value: Double, saturate: Bool) -> UInt16 {
      // Where nothing stands for NaN, minus zero is the least like a result.
      if value.isNaN { return hasNaN ? nanBits : UInt16(1 << signShift) }
      let signBit = value.sign == .minus ? UInt16(1 << signShift) : 0
      let magnitude = abs(value)
      let largest = decode(largestBits)
      if magnitude == 0 { return isUnsignedZero ? 0 : signBit }
      let exponent = max(
        magnitude.isFinite ? magnitude.exponent.asInt : Int.max / 2, 1 - bias)
      if magnitude.isFinite {
        let step = SmallFloat.powerOfTwo(min(exponent, 1023) - mantissaBits)
        let rounded = (magnitude / step).rounded(.toNearestOrEven)
        let result = rounded * step
        if result <= largest {
          if result == 0 { return isUnsignedZero ? 0 : signBit }
          let e = max(result.exponent.asInt, 1 - bias)
          let significand = Int(result / SmallFloat.powerOfTwo(e - mantissaBits))
          let isNormal = significand >= 1 << mantissaBits
          let field = isNormal ? (e + bias) << mantissaBits | (significand & mantissaMask) : significand
          return signBit | UInt16(field)
        }
      }
      if saturate || !hasNaN { return signBit | largestBits }
      return hasInfinity ? signBit | UInt16(exponentMask << mantissaBits) : nanBits
    }
  }

  /// Two to the power `exponent`, exact over the range of `Double`, subnormals included.
  package static func powerOfTwo(_ exponent: Int) -> Double {
    if exponent >= -1022 && exponent <= 1023 {
      return Double(bitPattern: UInt64(exponent + 1023) << 52)
    }
    if exponent < -1022 {
      return exponent < -1074 ? 0 : Double(bitPattern: 1 << UInt64(exponent + 1074))
    }
    return .infinity
  }

  /// binary16 to `Float`, exact.
  @inlinable package static func float(fromHalf bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10) & 0x1f
    let mantissa = UInt32(bits & 0x3ff)
    if exponent == 0x1f { return Float(bitPattern: sign | 0x7f80_0000 | mantissa << 13) }
    if exponent == 0 {
      let value = Float(mantissa) * Float(bitPattern: 0x3380_0000)
      return sign == 0 ? value : -value
    }
    return Float(bitPattern: sign | (exponent + 112) << 23 | mantissa << 13)
  }

  /// `Float` to binary16, nearest, ties to even; too large ones become infinite.
  @inlinable package static func half(_ value: Float) -> UInt16 {
    let sign = UInt16(truncatingIfNeeded: value.bitPattern >> 16) & 0x8000
    let bits = value.bitPattern & 0x7fff_ffff
    if bits > 0x7f80_0000 { return 0x7e00 }
    if bits >= 0x477f_f000 { return sign | 0x7c00 }
    if bits < 0x3880_0000 {
      // One half's last bit weighs what a subnormal's does: the addition rounds.
      return sign | UInt16((Float(bitPattern: bits) + 0.5).bitPattern - 0x3f00_0000)
    }
    return sign | UInt16((bits &- 0x3800_0000 &+ 0xfff &+ ((bits >> 13) & 1)) >> 13)
  }

  /// bfloat16 to `Float`, exact.
  @inlinable package static func float(fromBFloat16 bits: UInt16) -> Float {
    Float(bitPattern: UInt32(bits) << 16)
  }

  /// `Float` to bfloat16, nearest, ties to even.
  @inlinable package static func bfloat16(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    if value.isNaN { return UInt16(bits >> 16) | 0x40 }
    return UInt16((bits &+ 0x7fff &+ ((bits >> 16) & 1)) >> 16)
  }
}

extension Double.Exponent {
  fileprivate var asInt: Int { Int(self) }
}
