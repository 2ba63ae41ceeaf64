// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor
import ApusX86

/// How elements of narrower types become 32-bit lanes and back.
package enum ElementAccess {
  /// Whether kernels of this family load and store elements of the type.
  package static func supports(_ type: DataType, _ isa: ISA) -> Bool {
    switch type {
    case .float32, .int32: isa != .portable
    case .uint8, .int8: isa != .portable
    case .bfloat16: isa == .avx512 && CPUFeatures.host.avx512BF16
    default: false
    }
  }

  /// Whether two vectors side by side are stored with less work together: each conversion to BF16 takes as much as
  /// that of both.
  static func pairs(_ type: DataType, _ isa: ISA) -> Bool { type == .bfloat16 && isa == .avx512 }

  /// Whether lanes loaded from elements of the type are integers.
  static func isInteger(_ type: DataType) -> Bool { type.isInteger }

  /// Bytes of an element.
  static func byteCount(_ type: DataType) -> Int { type.bitWidth / 8 }
}

extension Assembler {
  /// Loads one vector of elements, or the lanes of `tail` with zeros in the others: floats from
  /// float types, 32-bit integers from integers.
  func loadElements(_ to: Vec, _ from: Address, _ type: DataType, _ tail: TailMask?) {
    var mask: Mask?
    if case .mask(let lanes) = tail { mask = lanes }
    if case .lanes(_, let count) = tail, type == .uint8 || type == .int8 {
      guard let count else { return fail(Self.unknownCount) }
      loadBytes(to, from, count: count)
      return type == .uint8 ? vpmovzxbd(to, to.at(.xmm)) : vpmovsxbd(to, to.at(.xmm))
    }
    switch type {
    case .uint8: vpmovzxbd(to, from, mask: mask)
    case .int8: vpmovsxbd(to, from, mask: mask)
    case .bfloat16:
      vpmovzxwd(to, from, mask: mask)
      vpslld(to, to, 16)
    default: loadTail(to, from, tail)
    }
  }

  /// Stores one vector of lanes as elements, or the lanes of `tail`. Integers are in range already;
  /// floats are rounded. The register may be changed.
  func storeElements(_ to: Address, _ from: Vec, _ type: DataType, _ tail: TailMask?) {
    var mask: Mask?
    if case .mask(let lanes) = tail { mask = lanes }
    if from.width == .ymm, type == .uint8 || type == .int8 {
      var count: Int? = from.width.lanes
      if case .lanes(_, let some) = tail { count = some }
      guard let count else { return fail(Self.unknownCount) }
      narrowToBytes(from)
      return storeBytes(to, from, count: count)
    }
    switch type {
    case .uint8, .int8: vpmovdb(to, from, mask: mask)
    case .bfloat16:
      vcvtneps2bf16(from.at(.ymm), from)
      vmovdqu16(to, from.at(.ymm), mask: mask)
    default: storeTail(to, from, tail)
    }
  }

  /// Stores two vectors of lanes side by side, of a type that pairs. The registers may be changed.
  func storeElements(_ to: Address, _ first: Vec, _ second: Vec) {
    vcvtne2ps2bf16(first, second, first)
    vmovups(to, first)
  }

  /// The same at two places.
  func storeElements(_ to: Address, _ first: Vec, _ other: Address, _ second: Vec) {
    vcvtne2ps2bf16(first, second, first)
    vmovups(to, first.at(.ymm))
    vextractf64x4(other, first, 1)
  }

  /// Packs one or two pairs of vectors of whole numbers into 16-bit elements, adds the zero point to these, packs them into
  /// bytes, all with saturation, and puts the bytes in order: a pair's first vector, its second, the next pair's. The
  /// registers are overwritten; the first holds the result.
  func packBytes(_ pairs: [(Vec, Vec)], zeroPoint: Int, as type: DataType, order: Vec) -> Vec {
    for (words, other) in pairs {
      vpackssdw(words, words, other)
      guard zeroPoint != 0 else { continue }
      let zero = UInt32(UInt16(truncatingIfNeeded: zeroPoint))
      vpaddsw(words, words, constant(words: Array(repeating: zero << 16 | zero, count: 16)))
    }
    let (bytes, other) = (pairs[0].0, pairs[pairs.count - 1].0)
    if type == .uint8 { vpackuswb(bytes, bytes, other) } else { vpacksswb(bytes, bytes, other) }
    // Packing works within 128 bits: lane 4 i + j has what belongs to i + j times the number of such parts.
    let parts = bytes.width.bytes / 16
    vmovups(order, constant(words: (0..<bytes.width.lanes).map { UInt32($0 % parts * 4 + $0 / parts) }))
    vpermd(bytes, order, bytes)
    return bytes
  }

  /// Puts the lowest byte of every 32-bit lane side by side (AVX2), with no register but the one.
  private func narrowToBytes(_ lanes: Vec) {
    // The bytes of each half together, the halves together, and the four-byte pieces of those.
    let order: [UInt32] = [0x0C08_0400, 0x0C08_0400, 0x0C08_0400, 0x0C08_0400]
    vpshufb(lanes, lanes, constant(words: order + order))
    vpermq(lanes, lanes, 0b1000)
    vpermilps(lanes.at(.xmm), lanes.at(.xmm), 0b1000)
  }

  private static var unknownCount: ApusError {
    ApusError(.notYetSupported, "some bytes of a vector need AVX-512 or a number known in advance")
  }
}
