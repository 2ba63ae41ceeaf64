// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension Assembler {
  // MARK: Encoding

  /// REX prefix, opcode bytes, ModRM, SIB and displacement; `trailing` immediate bytes follow.
  private func general(
    wide: Bool, _ opcode: [UInt8], reg: UInt8, _ operand: EncodedOperand, trailing: Int = 0
  ) {
    var rex: UInt8 = wide ? 0x48 : 0
    if reg & 8 != 0 { rex |= 0x44 }
    switch operand {
    case .register(let number): if number & 8 != 0 { rex |= 0x41 }
    case .memory(let address):
      if let base = address.base, base.number & 8 != 0 { rex |= 0x41 }
      if let index = address.index, index.number & 8 != 0 { rex |= 0x42 }
    }
    if rex != 0 { emit(rex) }
    for byte in opcode { emit(byte) }
    modRM(reg: reg, operand, compression: 1, trailing: trailing)
  }

  /// ModRM, SIB and displacement. An 8-bit displacement counts in units of `compression` bytes.
  func modRM(reg: UInt8, _ operand: EncodedOperand, compression: Int, trailing: Int) {
    let field = (reg & 7) << 3
    switch operand {
    case .register(let number): emit(0xC0 | field | (number & 7))
    case .memory(let address):
      if let label = address.label {
        emit(field | 5)
        emitRelative(to: label, addend: address.displacement, trailing: trailing)
        return
      }
      guard let base = address.base else { return fail("address without a base") }
      let disp = address.displacement
      let mod: UInt8
      if disp == 0 && base.number & 7 != 5 {
        mod = 0
      } else if disp % compression == 0, Int8(exactly: disp / compression) != nil {
        mod = 0x40
      } else {
        mod = 0x80
        if Int32(exactly: disp) == nil { fail("displacement \(disp) does not fit") }
      }
      if let index = address.index {
        if index.number == 4, !address.hasLanes { fail("rsp cannot be an index") }
        let scale: UInt8
        switch address.scale {
        case 1: scale = 0
        case 2: scale = 0x40
        case 4: scale = 0x80
        case 8: scale = 0xC0
        default:
          scale = 0
          fail("scale \(address.scale)")
        }
        emit(mod | field | 4)
        emit(scale | (index.number & 7) << 3 | (base.number & 7))
      } else if base.number & 7 == 4 {
        emit(mod | field | 4)
        emit(0x24)
      } else {
        emit(mod | field | (base.number & 7))
      }
      if mod == 0x40 { emit(UInt8(truncatingIfNeeded: disp / compression)) }
      if mod == 0x80 { emit32(disp) }
    }
  }

  // MARK: Moves

  package func mov(_ to: R64, _ from: R64) {
    general(wide: true, [0x89], reg: from.number, .register(to.number))
  }
  /// Loads 64 bits.
  package func mov(_ to: R64, _ from: Address) {
    general(wide: true, [0x8B], reg: to.number, .memory(from))
  }
  /// Stores 64 bits.
  package func mov(_ to: Address, _ from: R64) {
    general(wide: true, [0x89], reg: from.number, .memory(to))
  }
  /// Loads 32 bits, clearing the upper half.
  package func mov32(_ to: R64, _ from: Address) {
    general(wide: false, [0x8B], reg: to.number, .memory(from))
  }
  /// Sets a register to a constant by the shortest sign-extending form.
  package func mov(_ to: R64, _ value: Int) {
    if Int32(exactly: value) != nil {
      general(wide: true, [0xC7], reg: 0, .register(to.number), trailing: 4)
      emit32(value)
    } else {
      emit(to.number & 8 != 0 ? 0x49 : 0x48)
      emit(0xB8 | (to.number & 7))
      emit64(value)
    }
  }
  /// Clears a register (and the flags).
  package func clear(_ register: R64) {
    general(wide: false, [0x31], reg: register.number, .register(register.number))
  }
  package func lea(_ to: R64, _ address: Address) {
    general(wide: true, [0x8D], reg: to.number, .memory(address))
  }
  package func push(_ register: R64) {
    if register.number & 8 != 0 { emit(0x41) }
    emit(0x50 | (register.number & 7))
  }
  package func pop(_ register: R64) {
    if register.number & 8 != 0 { emit(0x41) }
    emit(0x58 | (register.number & 7))
  }

  // MARK: Arithmetic

  private func arithmetic(_ digit: UInt8, _ to: EncodedOperand, _ value: Int) {
    if Int8(exactly: value) != nil {
      general(wide: true, [0x83], reg: digit, to, trailing: 1)
      emit(UInt8(truncatingIfNeeded: value))
    } else {
      if Int32(exactly: value) == nil { fail("immediate \(value) does not fit") }
      general(wide: true, [0x81], reg: digit, to, trailing: 4)
      emit32(value)
    }
  }

  package func add(_ to: R64, _ value: Int) { arithmetic(0, .register(to.number), value) }
  package func and(_ to: R64, _ value: Int) { arithmetic(4, .register(to.number), value) }
  package func sub(_ to: R64, _ value: Int) { arithmetic(5, .register(to.number), value) }
  package func cmp(_ to: R64, _ value: Int) { arithmetic(7, .register(to.number), value) }
  package func cmp(_ to: Address, _ value: Int) { arithmetic(7, .memory(to), value) }
  package func add(_ to: R64, _ from: R64) {
    general(wide: true, [0x01], reg: from.number, .register(to.number))
  }
  package func sub(_ to: R64, _ from: R64) {
    general(wide: true, [0x29], reg: from.number, .register(to.number))
  }
  package func and(_ to: R64, _ from: R64) {
    general(wide: true, [0x21], reg: from.number, .register(to.number))
  }
  package func or(_ to: R64, _ from: R64) {
    general(wide: true, [0x09], reg: from.number, .register(to.number))
  }
  package func cmp(_ a: R64, _ b: R64) {
    general(wide: true, [0x39], reg: b.number, .register(a.number))
  }
  package func test(_ a: R64, _ b: R64) {
    general(wide: true, [0x85], reg: b.number, .register(a.number))
  }
  package func add(_ to: R64, _ from: Address) {
    general(wide: true, [0x03], reg: to.number, .memory(from))
  }
  package func sub(_ to: R64, _ from: Address) {
    general(wide: true, [0x2B], reg: to.number, .memory(from))
  }
  package func cmp(_ a: R64, _ b: Address) {
    general(wide: true, [0x3B], reg: a.number, .memory(b))
  }
  package func imul(_ to: R64, _ from: R64) {
    general(wide: true, [0x0F, 0xAF], reg: to.number, .register(from.number))
  }
  package func imul(_ to: R64, _ from: R64, _ value: Int) {
    if Int8(exactly: value) != nil {
      general(wide: true, [0x6B], reg: to.number, .register(from.number), trailing: 1)
      emit(UInt8(truncatingIfNeeded: value))
    } else {
      if Int32(exactly: value) == nil { fail("immediate \(value) does not fit") }
      general(wide: true, [0x69], reg: to.number, .register(from.number), trailing: 4)
      emit32(value)
    }
  }
  private func shift(_ digit: UInt8, _ to: R64, _ count: Int) {
    general(wide: true, [0xC1], reg: digit, .register(to.number), trailing: 1)
    emit(UInt8(truncatingIfNeeded: count & 63))
  }
  package func shl(_ to: R64, _ count: Int) { shift(4, to, count) }
  package func shr(_ to: R64, _ count: Int) { shift(5, to, count) }
  package func inc(_ to: R64) { general(wide: true, [0xFF], reg: 0, .register(to.number)) }
  package func dec(_ to: R64) { general(wide: true, [0xFF], reg: 1, .register(to.number)) }
  package func neg(_ to: R64) { general(wide: true, [0xF7], reg: 3, .register(to.number)) }
  /// `to = from` if the condition holds.
  package func cmov(_ condition: Condition, _ to: R64, _ from: R64) {
    general(
      wide: true, [0x0F, 0x40 | condition.rawValue], reg: to.number, .register(from.number))
  }
  /// The low `count` bits of `from` (count in the low byte of `count`); needs BMI2.
  package func bzhi(_ to: R64, _ from: R64, _ count: R64) {
    emit(0xC4)
    emit((to.number & 8 == 0 ? 0x80 : 0) | 0x40 | (from.number & 8 == 0 ? 0x20 : 0) | 2)
    emit(0x80 | (~count.number & 15) << 3)
    emit(0xF5)
    modRM(reg: to.number, .register(from.number), compression: 1, trailing: 0)
  }
  package func prefetcht0(_ address: Address) {
    general(wide: false, [0x0F, 0x18], reg: 1, .memory(address))
  }
  package func prefetcht1(_ address: Address) {
    general(wide: false, [0x0F, 0x18], reg: 2, .memory(address))
  }

  // MARK: Control

  package func ret() { emit(0xC3) }

  package func jmp(_ label: Label) {
    if let short = shortDistance(to: label) {
      emit(0xEB)
      emit(short)
    } else {
      emit(0xE9)
      emitRelative(to: label)
    }
  }
  package func j(_ condition: Condition, _ label: Label) {
    if let short = shortDistance(to: label) {
      emit(0x70 | condition.rawValue)
      emit(short)
    } else {
      emit(0x0F)
      emit(0x80 | condition.rawValue)
      emitRelative(to: label)
    }
  }
  /// The 8-bit distance of a backward jump of two bytes from here, if it fits.
  private func shortDistance(to label: Label) -> UInt8? {
    guard let target = position(of: label), let near = Int8(exactly: target - bytes.count - 2)
    else { return nil }
    return UInt8(bitPattern: near)
  }
}
