// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The vector instructions: a table row each, and a method named after the mnemonic.
///
/// Operands are in the manuals' order, destination first. The VEX form is used where it exists and
/// suffices; masks, registers above 15, embedded broadcasts and 512 bits take the EVEX form.
extension Assembler {
  // MARK: Three operands

  private func three(
    _ row: VectorRow, _ to: Vec, _ a: Vec, _ b: some VectorOperand, _ mask: Mask?, _ zeroing: Bool,
    _ immediate: UInt8? = nil
  ) {
    vector(
      row, to.width, reg: to.number, second: a.number, b.encoded, mask: mask, zeroing: zeroing,
      immediate: immediate)
  }

  package func vaddps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x58), to, a, b, mask, zeroing) }
  package func vmulps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x59), to, a, b, mask, zeroing) }
  package func vsubps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x5C), to, a, b, mask, zeroing) }
  package func vminps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x5D), to, a, b, mask, zeroing) }
  package func vdivps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x5E), to, a, b, mask, zeroing) }
  package func vmaxps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.none, .m0F, 0x5F), to, a, b, mask, zeroing) }
  package func vandps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x54), to, a, b, nil, false)
  }
  package func vandnps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x55), to, a, b, nil, false)
  }
  package func vorps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x56), to, a, b, nil, false)
  }
  package func vxorps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x57), to, a, b, nil, false)
  }
  /// `to += a * b`
  package func vfmadd231ps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.x66, .m0F38, 0xB8), to, a, b, mask, zeroing) }
  /// `to = to * a + b`
  package func vfmadd213ps(
    _ to: Vec, _ a: Vec, _ b: some VectorOperand, mask: Mask? = nil, zeroing: Bool = false
  ) { three(VectorRow(.x66, .m0F38, 0xA8), to, a, b, mask, zeroing) }
  /// `to -= a * b`
  package func vfnmadd231ps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0xBC), to, a, b, nil, false)
  }
  /// `to = a * b - to`
  package func vfmsub231ps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0xBA), to, a, b, nil, false)
  }
  /// `to = b - to * a`
  package func vfnmadd213ps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0xAC), to, a, b, nil, false)
  }
  package func vpaddd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F, 0xFE), to, a, b, nil, false)
  }
  package func vpsubd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F, 0xFA), to, a, b, nil, false)
  }
  /// Smaller and larger of signed 32-bit lanes.
  package func vpminsd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x39), to, a, b, nil, false)
  }
  package func vpmaxsd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x3D), to, a, b, nil, false)
  }
  package func vpmulld(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x40), to, a, b, nil, false)
  }
  /// `to = a * 2^floor(b)`, saturating properly at both ends (AVX-512).
  package func vscalefps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x2C, .full, .evex), to, a, b, nil, false)
  }
  /// Lanes of `b` where the mask is set, of `a` elsewhere (AVX-512).
  package func vblendmps(_ to: Vec, _ mask: Mask, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x65, .full, .evex), to, a, b, mask, false)
  }
  package func vshufps(_ to: Vec, _ a: Vec, _ b: some VectorOperand, _ selector: UInt8) {
    three(VectorRow(.none, .m0F, 0xC6), to, a, b, nil, false, selector)
  }
  package func vunpcklps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x14), to, a, b, nil, false)
  }
  package func vunpckhps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.none, .m0F, 0x15), to, a, b, nil, false)
  }
  /// 8-bit unsigned (`a`) times 8-bit signed (`b`), four products added to each 32-bit lane.
  package func vpdpbusd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x50, .full, .evex), to, a, b, nil, false)
  }
  /// The same in the VEX form, which CPUs without AVX-512 have (AVX-VNNI).
  package func vexVpdpbusd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    use(.avxVNNI)
    three(VectorRow(.x66, .m0F38, 0x50, .full, .vex), to, a, b, nil, false)
  }
  /// 16-bit signed times 16-bit signed, two products added to each 32-bit lane.
  package func vpdpwssd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.x66, .m0F38, 0x52, .full, .evex), to, a, b, nil, false)
  }
  /// Pairs of BF16 products added to each single-precision lane.
  package func vdpbf16ps(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F38, 0x52, .full, .evex), to, a, b, nil, false)
  }
  package func vmovhlps(_ to: Vec, _ a: Vec, _ b: Vec) {
    three(VectorRow(.none, .m0F, 0x12), to, a, b, nil, false)
  }

  /// 128-bit halves chosen by `selector` from both operands (AVX).
  package func vperm2f128(_ to: Vec, _ a: Vec, _ b: some VectorOperand, _ selector: UInt8) {
    three(VectorRow(.x66, .m0F3A, 0x06, .full, .vex), to, a, b, nil, false, selector)
  }

  // MARK: Scalar

  package func vaddss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x58, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }
  package func vmulss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x59, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }
  package func vsubss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x5C, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }
  package func vdivss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x5E, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }
  package func vmaxss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x5F, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }
  package func vsqrtss(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(VectorRow(.xF3, .m0F, 0x51, .fixed(4)), to.at(.xmm), a, b, nil, false)
  }

  // MARK: Two operands

  private func two(
    _ row: VectorRow, _ to: Vec, _ from: some VectorOperand, _ mask: Mask? = nil,
    _ zeroing: Bool = false, _ immediate: UInt8? = nil
  ) {
    vector(
      row, to.width, reg: to.number, second: 0, from.encoded, mask: mask, zeroing: zeroing,
      immediate: immediate)
  }

  package func vsqrtps(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.none, .m0F, 0x51), to, from)
  }
  package func vcvtdq2ps(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.none, .m0F, 0x5B), to, from)
  }
  package func vcvtps2dq(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.x66, .m0F, 0x5B), to, from)
  }
  /// To unsigned integers; what is negative or too large becomes the largest one.
  package func vcvtps2udq(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.none, .m0F, 0x79, .full, .evex), to, from)
  }
  package func vcvttps2dq(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.xF3, .m0F, 0x5B), to, from)
  }
  package func vmovshdup(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.xF3, .m0F, 0x16, .fullMemory), to, from)
  }
  /// Mode 0 nearest even, 1 down, 2 up, 3 towards zero; VEX up to 256 bits, EVEX above.
  package func vroundps(_ to: Vec, _ from: some VectorOperand, _ mode: UInt8) {
    let high = to.width == .zmm || to.number >= 16 || isHigh(from)
    let row =
      high
      ? VectorRow(.x66, .m0F3A, 0x08, .full, .evex) : VectorRow(.x66, .m0F3A, 0x08, .full, .vex)
    two(row, to, from, nil, false, mode | 8)
  }
  private func isHigh(_ operand: some VectorOperand) -> Bool {
    switch operand.encoded {
    case .register(let number): number >= 16
    case .memory(let address): address.broadcast
    }
  }
  package func vpermilps(_ to: Vec, _ from: some VectorOperand, _ selector: UInt8) {
    two(VectorRow(.x66, .m0F3A, 0x04), to, from, nil, false, selector)
  }
  package func vbroadcastss(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.x66, .m0F38, 0x18, .fixed(4)), to, from)
  }
  /// Broadcasts to the lanes set in `mask`, clearing the others (AVX-512).
  package func vbroadcastss(_ to: Vec, _ from: some VectorOperand, mask: Mask) {
    two(VectorRow(.x66, .m0F38, 0x18, .fixed(4)), to, from, mask, true)
  }
  package func vpbroadcastd(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.x66, .m0F38, 0x58, .fixed(4)), to, from)
  }

  // MARK: Moves

  package func vmovups(_ to: Vec, _ from: some VectorOperand) {
    two(VectorRow(.none, .m0F, 0x10, .fullMemory), to, from)
  }
  package func vmovups(_ to: Vec, _ from: some VectorOperand, mask: Mask, zeroing: Bool) {
    two(VectorRow(.none, .m0F, 0x10, .fullMemory), to, from, mask, zeroing)
  }
  /// Stores a register.
  package func vmovups(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    vector(
      VectorRow(.none, .m0F, 0x11, .fullMemory), from.width, reg: from.number, second: 0,
      to.encoded, mask: mask)
  }
  /// Loads one lane, clearing the others.
  package func vmovss(_ to: Vec, _ from: Address) {
    two(VectorRow(.xF3, .m0F, 0x10, .fixed(4)), to.at(.xmm), from)
  }
  /// Stores the lowest lane.
  package func vmovss(_ to: Address, _ from: Vec) {
    vector(
      VectorRow(.xF3, .m0F, 0x11, .fixed(4)), .xmm, reg: from.number, second: 0, to.encoded)
  }
  /// Loads the lanes whose `mask` element is negative, clearing the others (AVX).
  package func vmaskmovps(_ to: Vec, mask: Vec, _ from: Address) {
    three(VectorRow(.x66, .m0F38, 0x2C, .fullMemory, .vex), to, mask, from, nil, false)
  }
  /// Stores the lanes whose `mask` element is negative (AVX).
  package func vmaskmovps(_ to: Address, mask: Vec, _ from: Vec) {
    three(VectorRow(.x66, .m0F38, 0x2E, .fullMemory, .vex), from, mask, to, nil, false)
  }
  package func vextractf128(_ to: some VectorOperand, _ from: Vec, _ half: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x19, .fixed(16), .vex), .ymm, reg: from.number, second: 0,
      to.encoded, immediate: half)
  }
  package func vextractf32x4(_ to: some VectorOperand, _ from: Vec, _ quarter: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x19, .fixed(16), .evex), from.width, reg: from.number, second: 0,
      to.encoded, immediate: quarter)
  }
  /// `from` with one quarter, 128 bits, replaced.
  package func vinserti32x4(_ to: Vec, _ from: Vec, _ part: some VectorOperand, _ quarter: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x38, .fixed(16), .evex), to.width, reg: to.number,
      second: from.number, part.encoded, immediate: quarter)
  }
  package func vextractf64x4(_ to: some VectorOperand, _ from: Vec, _ half: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x1B, w: true, .fixed(32), .evex), .zmm, reg: from.number, second: 0,
      to.encoded, immediate: half)
  }
  package func vzeroupper() {
    emit(0xC5)
    emit(0xF8)
    emit(0x77)
  }

  // MARK: Shifts by a constant

  private func shift(_ opcode: UInt8, _ digit: UInt8, _ to: Vec, _ from: Vec, _ count: UInt8) {
    vector(
      VectorRow(.x66, .m0F, opcode), to.width, reg: digit, second: to.number, from.encoded,
      immediate: count)
  }
  package func vpslld(_ to: Vec, _ from: Vec, _ count: UInt8) { shift(0x72, 6, to, from, count) }
  package func vpsrld(_ to: Vec, _ from: Vec, _ count: UInt8) { shift(0x72, 2, to, from, count) }
  package func vpsrad(_ to: Vec, _ from: Vec, _ count: UInt8) { shift(0x72, 4, to, from, count) }

  // MARK: Comparison

  /// All ones in the lanes where the predicate holds (AVX).
  package func vcmpps(_ to: Vec, _ a: Vec, _ b: some VectorOperand, _ predicate: Predicate) {
    three(
      VectorRow(.none, .m0F, 0xC2, .full, .vex), to, a, b, nil, false, predicate.rawValue)
  }
  /// The mask of the lanes where the predicate holds (AVX-512).
  package func vcmpps(_ to: Mask, _ a: Vec, _ b: some VectorOperand, _ predicate: Predicate) {
    vector(
      VectorRow(.none, .m0F, 0xC2, .full, .evex), a.width, reg: to.number, second: a.number,
      b.encoded, immediate: predicate.rawValue)
  }
  /// The 32-bit elements at `base + 4 * lane`, where the lane of `mask` is negative; clears the mask (AVX2). The three
  /// registers differ.
  package func vpgatherdd(_ to: Vec, _ base: R64, _ lanes: Vec, mask: Vec) {
    if to.number == mask.number || to.number == lanes.number || mask.number == lanes.number {
      fail("a gather needs three registers")
    }
    vector(
      VectorRow(.x66, .m0F38, 0x90, .full, .vex), to.width, reg: to.number, second: mask.number,
      .memory(Address(base, lanes: lanes, scale: 4)))
  }
  /// Lanes of `b` where a bit of `choice` is set, of `a` elsewhere (AVX).
  package func vblendps(_ to: Vec, _ a: Vec, _ b: some VectorOperand, _ choice: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x0C, .full, .vex), to.width, reg: to.number, second: a.number, b.encoded,
      immediate: choice)
  }
  /// Lanes of `b` where `mask` is negative, of `a` elsewhere (AVX).
  package func vblendvps(_ to: Vec, mask: Vec, _ a: Vec, _ b: some VectorOperand) {
    three(
      VectorRow(.x66, .m0F3A, 0x4A, .full, .vex), to, a, b, nil, false, mask.number << 4)
  }

  // MARK: Masks

  package func kmovw(_ to: Mask, _ from: R64) { kmov(.none, to, from) }
  package func kmovd(_ to: Mask, _ from: R64) { kmov(.xF2, to, from) }
  package func kmovq(_ to: Mask, _ from: R64) { kmov(.xF2, to, from, wide: true) }
  private func kmov(_ prefix: VectorRow.Prefix, _ to: Mask, _ from: R64, wide: Bool = false) {
    use(.avx512)
    vector(
      VectorRow(prefix, .m0F, 0x92, w: wide, .full, .vex), .xmm, reg: to.number, second: 0,
      .register(from.number))
  }
}

/// Predicates of floating-point comparisons; raw values are the hardware's.
package enum Predicate: UInt8, Sendable {
  /// Ordered comparisons: false when an operand is NaN.
  case equal = 0x00
  case less = 0x11
  case lessOrEqual = 0x12
  case greaterOrEqual = 0x1D
  case greater = 0x1E
  /// True when an operand is NaN.
  case notEqual = 0x04
  case notLess = 0x15
  case unordered = 0x03
  case ordered = 0x07
}
