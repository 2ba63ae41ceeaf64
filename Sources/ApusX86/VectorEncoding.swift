// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// One vector instruction as the manuals give it.
struct VectorRow: Sendable {
  /// The mandatory prefix; raw values are the `pp` field.
  enum Prefix: UInt8, Sendable { case none, x66, xF3, xF2 }
  /// The opcode map; raw values are the `mmm` field.
  enum Map: UInt8, Sendable { case m0F = 1, m0F38, m0F3A }
  /// What a memory operand covers; decides the unit of 8-bit displacements.
  enum Tuple: Sendable {
    /// The whole vector, or one broadcast element of 4 (W0) or 8 (W1) bytes.
    case full
    /// The whole vector, no broadcast.
    case fullMemory
    /// A fixed number of bytes.
    case fixed(Int)
    /// A fraction of the vector.
    case fraction(Int)
  }
  /// Which encodings exist.
  enum Forms: Sendable { case both, vex, evex }

  var opcode: UInt8
  var prefix: Prefix
  var map: Map
  /// `W` of the EVEX form; VEX forms have W 0 except where `vexW` says otherwise.
  var wide: Bool
  var tuple: Tuple
  var forms: Forms

  init(
    _ prefix: Prefix, _ map: Map, _ opcode: UInt8, w wide: Bool = false, _ tuple: Tuple = .full,
    _ forms: Forms = .both
  ) {
    self.opcode = opcode
    self.prefix = prefix
    self.map = map
    self.wide = wide
    self.tuple = tuple
    self.forms = forms
  }
}

extension Assembler {
  /// Emits a vector instruction: `reg` and `second` are the ModRM register and the VEX.vvvv register,
  /// `operand` is the ModRM operand, `immediate` one trailing byte.
  func vector(
    _ row: VectorRow, _ width: VectorWidth, reg: UInt8, second: UInt8, _ operand: EncodedOperand,
    mask: Mask? = nil, zeroing: Bool = false, immediate: UInt8? = nil
  ) {
    var high = reg >= 16 || second >= 16
    var broadcast = false
    switch operand {
    case .register(let number): high = high || number >= 16
    case .memory(let address): broadcast = address.broadcast
    }
    let extended = high || broadcast || mask != nil || width == .zmm
    switch row.forms {
    case .vex where extended:
      fail("opcode \(row.opcode) has no AVX-512 form")
    case .vex,
      .both where !extended:
      vex(row, width, reg: reg, second: second, operand, immediate: immediate)
    default:
      evex(
        row, width, reg: reg, second: second, operand, mask: mask, zeroing: zeroing,
        broadcast: broadcast, immediate: immediate)
    }
  }

  private func vex(
    _ row: VectorRow, _ width: VectorWidth, reg: UInt8, second: UInt8, _ operand: EncodedOperand,
    immediate: UInt8?
  ) {
    let (x, b) = extensions(operand)
    let notR: UInt8 = reg & 8 == 0 ? 0x80 : 0
    let length: UInt8 = width == .ymm ? 4 : 0
    let tail = (~second & 15) << 3 | length | row.prefix.rawValue
    let isWide = row.wide && row.forms == .vex
    if row.map == .m0F && !x && !b && !isWide {
      emit(0xC5)
      emit(notR | tail)
    } else {
      emit(0xC4)
      emit(notR | (x ? 0 : 0x40) | (b ? 0 : 0x20) | row.map.rawValue)
      emit((isWide ? 0x80 : 0) | tail)
    }
    emit(row.opcode)
    modRM(reg: reg, operand, compression: 1, trailing: immediate == nil ? 0 : 1)
    if let immediate { emit(immediate) }
  }

  private func evex(
    _ row: VectorRow, _ width: VectorWidth, reg: UInt8, second: UInt8, _ operand: EncodedOperand,
    mask: Mask?, zeroing: Bool, broadcast: Bool, immediate: UInt8?
  ) {
    use(.avx512)
    let (x, b) = extensions(operand)
    let element = row.wide ? 8 : 4
    let unit: Int
    switch row.tuple {
    case .full: unit = broadcast ? element : width.bytes
    case .fullMemory: unit = width.bytes
    case .fixed(let bytes): unit = bytes
    case .fraction(let divisor): unit = width.bytes / divisor
    }
    if broadcast {
      if case .full = row.tuple {} else { fail("opcode \(row.opcode) cannot broadcast") }
    }
    if let mask, mask.number == 0 { fail("k0 is not a write mask") }
    emit(0x62)
    emit(
      (reg & 8 == 0 ? 0x80 : 0) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | (reg & 16 == 0 ? 0x10 : 0)
        | row.map.rawValue)
    emit((row.wide ? 0x80 : 0) | (~second & 15) << 3 | 4 | row.prefix.rawValue)
    emit(
      (zeroing ? 0x80 : 0) | width.rawValue << 5 | (broadcast ? 0x10 : 0)
        | (second & 16 == 0 ? 8 : 0) | (mask?.number ?? 0))
    emit(row.opcode)
    modRM(reg: reg, operand, compression: unit, trailing: immediate == nil ? 0 : 1)
    if let immediate { emit(immediate) }
  }

  /// The X and B extension bits of an operand (X is bit 4 of a register operand).
  private func extensions(_ operand: EncodedOperand) -> (x: Bool, b: Bool) {
    switch operand {
    case .register(let number): (number & 16 != 0, number & 8 != 0)
    case .memory(let address):
      ((address.index?.number ?? 0) & 8 != 0, (address.base?.number ?? 0) & 8 != 0)
    }
  }
}
