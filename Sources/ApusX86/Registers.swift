// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A 64-bit general-purpose register.
package struct R64: Hashable, Sendable {
  /// The hardware number, 0 to 15.
  package let number: UInt8

  /// The register with hardware number `number`.
  package init(_ number: Int) { self.number = UInt8(truncatingIfNeeded: number) & 15 }

  package static let rax = R64(0)
  package static let rcx = R64(1)
  package static let rdx = R64(2)
  package static let rbx = R64(3)
  package static let rsp = R64(4)
  package static let rbp = R64(5)
  package static let rsi = R64(6)
  package static let rdi = R64(7)
  package static let r8 = R64(8)
  package static let r9 = R64(9)
  package static let r10 = R64(10)
  package static let r11 = R64(11)
  package static let r12 = R64(12)
  package static let r13 = R64(13)
  package static let r14 = R64(14)
  package static let r15 = R64(15)
}

/// An AVX-512 mask register.
package struct Mask: Hashable, Sendable {
  /// The hardware number, 0 to 7; as a write mask, 0 means "no mask".
  package let number: UInt8

  /// The register `k<number>`.
  package init(_ number: Int) { self.number = UInt8(truncatingIfNeeded: number) & 7 }
}

/// The width of a vector register.
package enum VectorWidth: UInt8, Hashable, Sendable {
  case xmm, ymm, zmm

  /// Bytes in one register: 16, 32 or 64.
  package var bytes: Int { 16 << Int(rawValue) }
  /// Single-precision lanes in one register.
  package var lanes: Int { bytes / 4 }
}

/// A vector register of some width. Kernels are written once over `Vec`; the width decides the ISA.
package struct Vec: Hashable, Sendable {
  /// The hardware number, 0 to 31 (above 15 only where AVX-512 encodings exist).
  package let number: UInt8
  /// How much of the register is used.
  package let width: VectorWidth

  /// Register `number` at `width`.
  package init(_ number: Int, _ width: VectorWidth) {
    self.number = UInt8(truncatingIfNeeded: number) & 31
    self.width = width
  }

  /// The same register at another width.
  package func at(_ width: VectorWidth) -> Vec { Vec(Int(number), width) }

  package static func xmm(_ number: Int) -> Vec { Vec(number, .xmm) }
  package static func ymm(_ number: Int) -> Vec { Vec(number, .ymm) }
  package static func zmm(_ number: Int) -> Vec { Vec(number, .zmm) }
}

/// A place in the code, bound once with `Assembler.bind`.
package struct Label: Hashable, Sendable {
  let index: Int
}

/// A memory operand: `[base + index * scale + displacement]`, or a label relative to the
/// instruction pointer.
package struct Address: Hashable, Sendable {
  var base: R64?
  var index: R64?
  /// Whether the index is the vector register of that number, an element for each lane.
  var hasLanes = false
  var scale: Int
  var displacement: Int
  var label: Label?
  /// Whether one 32-bit element is read and repeated in every lane (AVX-512).
  package var broadcast: Bool

  /// `[base + index * scale + displacement]`.
  package init(
    _ base: R64, index: R64? = nil, scale: Int = 1, _ displacement: Int = 0,
    broadcast: Bool = false
  ) {
    self.base = base
    self.index = index
    self.scale = scale
    self.displacement = displacement
    self.broadcast = broadcast
  }

  /// `[base + lane * scale]` for every lane; `lanes` is one of the first sixteen registers.
  init(_ base: R64, lanes: Vec, scale: Int) {
    self.init(base, index: R64(Int(lanes.number)), scale: scale)
    hasLanes = true
  }

  /// The bytes at `label`.
  package init(label: Label, _ displacement: Int = 0, broadcast: Bool = false) {
    self.scale = 1
    self.label = label
    self.displacement = displacement
    self.broadcast = broadcast
  }

  /// The address `bytes` further on.
  package func offset(_ bytes: Int) -> Address {
    var copy = self
    copy.displacement += bytes
    return copy
  }

  /// The same place read as one element repeated in every lane.
  package var broadcasting: Address {
    var copy = self
    copy.broadcast = true
    return copy
  }
}

/// What the last operand of a vector instruction may be: a register or memory.
package protocol VectorOperand: Sendable {
  /// The operand as the encoder sees it.
  var encoded: EncodedOperand { get }
}

/// A register number or an address: what the ModRM byte describes.
package enum EncodedOperand: Sendable {
  case register(UInt8)
  case memory(Address)
}

extension Vec: VectorOperand {
  package var encoded: EncodedOperand { .register(number) }
}

extension Address: VectorOperand {
  package var encoded: EncodedOperand { .memory(self) }
}

/// The condition of a conditional jump; raw values are the hardware's.
package enum Condition: UInt8, Sendable {
  case overflow = 0x0
  case below = 0x2
  case aboveOrEqual = 0x3
  case equal = 0x4
  case notEqual = 0x5
  case belowOrEqual = 0x6
  case above = 0x7
  case sign = 0x8
  case notSign = 0x9
  case less = 0xC
  case greaterOrEqual = 0xD
  case lessOrEqual = 0xE
  case greater = 0xF
}
