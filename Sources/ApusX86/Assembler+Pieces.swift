// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Bytes of a register one by one or a few at a time: what stands in for the byte masks that AVX2 lacks.
extension Assembler {
  // MARK: Single elements

  private func insert(_ map: VectorRow.Map, _ opcode: UInt8, _ to: Vec, _ from: Address, _ place: UInt8) {
    vector(
      VectorRow(.x66, map, opcode, .full, .vex), .xmm, reg: to.number, second: to.number,
      from.encoded, immediate: place)
  }
  /// Replaces byte `place` of the lowest 16.
  package func vpinsrb(_ to: Vec, _ from: Address, _ place: UInt8) {
    insert(.m0F3A, 0x20, to, from, place)
  }
  /// Replaces 16-bit element `place` of the lowest 8.
  package func vpinsrw(_ to: Vec, _ from: Address, _ place: UInt8) {
    insert(.m0F, 0xC4, to, from, place)
  }
  /// Replaces 32-bit element `place` of the lowest 4.
  package func vpinsrd(_ to: Vec, _ from: Address, _ place: UInt8) {
    insert(.m0F3A, 0x22, to, from, place)
  }

  private func extract(_ opcode: UInt8, _ to: Address, _ from: Vec, _ place: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, opcode, .full, .vex), .xmm, reg: from.number, second: 0, to.encoded,
      immediate: place)
  }
  /// Stores byte `place` of the lowest 16.
  package func vpextrb(_ to: Address, _ from: Vec, _ place: UInt8) { extract(0x14, to, from, place) }
  /// Stores 16-bit element `place` of the lowest 8.
  package func vpextrw(_ to: Address, _ from: Vec, _ place: UInt8) { extract(0x15, to, from, place) }
  /// Stores 32-bit element `place` of the lowest 4.
  package func vpextrd(_ to: Address, _ from: Vec, _ place: UInt8) { extract(0x16, to, from, place) }
  /// Loads the lowest 64 bits and clears the others.
  package func vmovq(_ to: Vec, _ from: Address) {
    vector(
      VectorRow(.xF3, .m0F, 0x7E, .full, .vex), .xmm, reg: to.number, second: 0, from.encoded)
  }
  /// Stores the lowest 64 bits.
  package func vmovq(_ to: Address, _ from: Vec) {
    vector(
      VectorRow(.x66, .m0F, 0xD6, .full, .vex), .xmm, reg: from.number, second: 0, to.encoded)
  }

  // MARK: Order

  /// Bytes of `from` at the places that `order` gives, within every 128 bits.
  package func vpshufb(_ to: Vec, _ from: Vec, _ order: some VectorOperand) {
    vector(
      VectorRow(.x66, .m0F38, 0x00, .fullMemory), to.width, reg: to.number, second: from.number,
      order.encoded)
  }
  /// 64-bit elements in the order that `selector` gives.
  package func vpermq(_ to: Vec, _ from: some VectorOperand, _ selector: UInt8) {
    vector(
      VectorRow(.x66, .m0F3A, 0x00, w: true, .full, .vex), to.width, reg: to.number, second: 0,
      from.encoded, immediate: selector)
  }

  // MARK: A few bytes

  /// Loads the first `count` bytes, 0 to 15, and reads no other. The rest of the register is cleared.
  package func loadBytes(_ to: Vec, _ from: Address, count: Int) {
    let low = to.at(.xmm)
    guard count < 16 else { return fail("\(count) bytes are more than a few") }
    var done = 0
    if count >= 8 {
      vmovq(low, from)
      done = 8
    } else if count >= 4 {
      vmovss(low, from)
      done = 4
    } else {
      vxorps(low, low, low)
    }
    if done == 8, count & 4 != 0 {
      vpinsrd(low, from.offset(done), 2)
      done = 12
    }
    if count & 2 != 0 {
      vpinsrw(low, from.offset(done), UInt8(done / 2))
      done += 2
    }
    if count & 1 != 0 { vpinsrb(low, from.offset(done), UInt8(done)) }
  }

  /// Stores the first `count` bytes of a register of at most 256 bits, whose lower half may be overwritten.
  package func storeBytes(_ to: Address, _ from: Vec, count: Int) {
    let low = from.at(.xmm)
    switch count {
    case 32: return vmovups(to, from.at(.ymm))
    case 16: return vmovups(to, low)
    case 17..<32:
      vmovups(to, low)
      vextractf128(low, from.at(.ymm), 1)
      return storeBytes(to.offset(16), low, count: count - 16)
    case 1..<16: break
    default: return fail("\(count) bytes are not in a register")
    }
    var done = 0
    if count & 8 != 0 {
      vmovq(to, low)
      done = 8
    }
    if count & 4 != 0 {
      if done == 0 { vmovss(to, low) } else { vpextrd(to.offset(done), low, UInt8(done / 4)) }
      done += 4
    }
    if count & 2 != 0 {
      vpextrw(to.offset(done), low, UInt8(done / 2))
      done += 2
    }
    if count & 1 != 0 { vpextrb(to.offset(done), low, UInt8(done)) }
  }
}
