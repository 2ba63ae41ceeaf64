// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Instructions between 32-bit lanes and narrower elements, and on bytes (AVX2; AVX-512 F, BW, BF16).
extension Assembler {
  // MARK: Widening loads

  private func widen(
    _ opcode: UInt8, _ divisor: Int, _ to: Vec, _ from: some VectorOperand, _ mask: Mask?
  ) {
    vector(
      VectorRow(.x66, .m0F38, opcode, .fraction(divisor)), to.width, reg: to.number, second: 0,
      from.encoded, mask: mask, zeroing: mask != nil)
  }

  /// Unsigned bytes to 32-bit lanes; lanes outside `mask` are cleared and their memory is not read.
  package func vpmovzxbd(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x31, 4, to, from, mask)
  }
  /// Signed bytes to 32-bit lanes.
  package func vpmovsxbd(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x21, 4, to, from, mask)
  }
  /// Unsigned 16-bit elements to 32-bit lanes.
  package func vpmovzxwd(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x33, 2, to, from, mask)
  }
  /// Unsigned bytes to 16-bit elements; those outside `mask` are cleared and their memory is not read.
  package func vpmovzxbw(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x30, 2, to, from, mask)
  }
  /// Signed bytes to 16-bit elements.
  package func vpmovsxbw(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x20, 2, to, from, mask)
  }
  /// Half precision to single precision.
  package func vcvtph2ps(_ to: Vec, _ from: some VectorOperand, mask: Mask? = nil) {
    widen(0x13, 2, to, from, mask)
  }

  // MARK: Narrowing stores

  private func narrow(_ opcode: UInt8, _ divisor: Int, _ to: Address, _ from: Vec, _ mask: Mask?) {
    vector(
      VectorRow(.xF3, .m0F38, opcode, .fraction(divisor), .evex), from.width, reg: from.number,
      second: 0, to.encoded, mask: mask)
  }

  /// Stores the lowest byte of every 32-bit lane.
  package func vpmovdb(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    narrow(0x31, 4, to, from, mask)
  }
  /// Stores 32-bit lanes as unsigned bytes, unsigned numbers above 255 as 255.
  package func vpmovusdb(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    narrow(0x11, 4, to, from, mask)
  }
  /// Stores 32-bit lanes as signed bytes, saturating at both ends.
  package func vpmovsdb(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    narrow(0x21, 4, to, from, mask)
  }
  /// Single precision to BF16, rounding to nearest even; `to` is half as wide as `from`.
  /// Single precision to BF16: `low` into the lower half, `high` into the upper.
  package func vcvtne2ps2bf16(_ to: Vec, _ high: Vec, _ low: Vec) {
    vector(
      VectorRow(.xF2, .m0F38, 0x72, .full, .evex), to.width, reg: to.number, second: high.number, low.encoded)
  }
  package func vcvtneps2bf16(_ to: Vec, _ from: Vec) {
    vector(
      VectorRow(.xF3, .m0F38, 0x72, .full, .evex), from.width, reg: to.number, second: 0,
      from.encoded)
  }
  /// Stores 16-bit elements.
  package func vmovdqu16(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    vector(
      VectorRow(.xF2, .m0F, 0x7F, w: true, .fullMemory, .evex), from.width, reg: from.number,
      second: 0, to.encoded, mask: mask)
  }

  // MARK: 16-bit elements

  /// Sums, wrapping around.
  package func vpaddw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xFD, to, a, b) }
  /// Sums of signed 16-bit elements, saturating.
  package func vpaddsw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xED, to, a, b) }
  /// Differences, wrapping around.
  package func vpsubw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xF9, to, a, b) }
  /// Products of signed 16-bit elements, those of neighbours added to 32-bit lanes.
  package func vpmaddwd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xF5, to, a, b) }
  /// Shifts by a constant to the left.
  package func vpsllw(_ to: Vec, _ from: Vec, _ count: UInt8) {
    vector(
      VectorRow(.x66, .m0F, 0x71, .fullMemory), to.width, reg: 6, second: to.number, from.encoded,
      immediate: count)
  }

  /// Shifts by a constant to the right, the sign moving in.
  package func vpsraw(_ to: Vec, _ from: Vec, _ count: UInt8) {
    vector(
      VectorRow(.x66, .m0F, 0x71, .fullMemory), to.width, reg: 4, second: to.number, from.encoded,
      immediate: count)
  }
  /// The larger of signed numbers.
  package func vpmaxsw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xEE, to, a, b) }

  // MARK: Bytes

  /// Loads bytes; those outside `mask` are cleared and not read.
  package func vmovdqu8(_ to: Vec, _ from: Address, mask: Mask? = nil) {
    vector(
      VectorRow(.xF2, .m0F, 0x6F, .fullMemory, .evex), to.width, reg: to.number, second: 0,
      from.encoded, mask: mask, zeroing: mask != nil)
  }
  /// Stores bytes.
  package func vmovdqu8(_ to: Address, _ from: Vec, mask: Mask? = nil) {
    vector(
      VectorRow(.xF2, .m0F, 0x7F, .fullMemory, .evex), from.width, reg: from.number, second: 0,
      to.encoded, mask: mask)
  }

  private func bytes(
    _ map: VectorRow.Map, _ opcode: UInt8, _ to: Vec, _ a: Vec, _ b: some VectorOperand
  ) {
    vector(
      VectorRow(.x66, map, opcode, .fullMemory), to.width, reg: to.number, second: a.number,
      b.encoded)
  }

  /// Bytes of `from` in the order that the lowest bits of `order` give (VBMI).
  package func vpermb(_ to: Vec, _ order: Vec, _ from: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x8D, .fullMemory, .evex), to.width, reg: to.number,
      second: order.number, from.encoded)
  }

  /// Bytes of `to` and `upper`, 128 in all, at the places that the low bits of `order` give (VBMI).
  package func vpermt2b(_ to: Vec, _ order: Vec, _ upper: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x7D, .fullMemory, .evex), to.width, reg: to.number,
      second: order.number, upper.encoded)
  }
  /// 16-bit elements of `to` and `upper`, 64 in all, at the places that the low bits of `order` give.
  package func vpermt2w(_ to: Vec, _ order: Vec, _ upper: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x7D, w: true, .fullMemory, .evex), to.width, reg: to.number,
      second: order.number, upper.encoded)
  }
  /// `to[i] = order[i]` counted through the lanes of `to` and then of `upper`.
  package func vpermt2d(_ to: Vec, _ order: Vec, _ upper: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x7E, .full, .evex), to.width, reg: to.number,
      second: order.number, upper.encoded)
  }
  /// Any function of three bits, for each bit of `to`, `a` and `b`: bit `4 to + 2 a + b` of `table`.
  package func vpternlogd(_ to: Vec, _ a: Vec, _ b: Vec, _ table: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x25, .full, .evex), to.width, reg: to.number, second: a.number,
      .register(b.number), immediate: table)
  }
  /// The mask of the 32-bit lanes that have a bit in common.
  package func vptestmd(_ to: Mask, _ a: Vec, _ b: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x27, .full, .evex), a.width, reg: to.number, second: a.number,
      b.encoded)
  }

  /// The 32-bit lanes of `from` in another order.
  package func vpermd(_ to: Vec, _ order: Vec, _ from: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x36), to.width, reg: to.number, second: order.number,
      from.encoded)
  }

  /// As `vpermd`, for numbers.
  package func vpermps(_ to: Vec, _ order: Vec, _ from: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x16), to.width, reg: to.number, second: order.number,
      from.encoded)
  }

  /// The larger of unsigned bytes.
  package func vpmaxub(_ to: Vec, _ a: Vec, _ b: some VectorOperand) { bytes(.m0F, 0xDE, to, a, b) }
  /// The larger of signed bytes.
  package func vpmaxsb(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F38, 0x3C, to, a, b)
  }
  /// Bytes of the lower halves of every 128 bits, in turn from `a` and `b`.
  package func vpunpcklbw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x60, to, a, b)
  }
  package func vpunpckhbw(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x68, to, a, b)
  }
  /// 16-bit elements of the lower halves of every 128 bits, in turn from `a` and `b`.
  package func vpunpcklwd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x61, to, a, b)
  }
  package func vpunpckhwd(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x69, to, a, b)
  }
  /// 32-bit lanes of both to signed 16-bit elements, saturating, within every 128 bits.
  package func vpackssdw(_ to: Vec, _ a: Vec, _ b: Vec) { bytes(.m0F, 0x6B, to, a, b) }
  /// Signed 16-bit elements of both to unsigned bytes, saturating, within every 128 bits.
  package func vpackuswb(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x67, to, a, b)
  }
  /// Signed 16-bit elements of both to signed bytes, saturating, within every 128 bits.
  package func vpacksswb(_ to: Vec, _ a: Vec, _ b: some VectorOperand) {
    bytes(.m0F, 0x63, to, a, b)
  }
}
