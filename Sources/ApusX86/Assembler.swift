// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Collects x86-64 machine code.
///
/// Instruction methods never throw: the first mistake (an operand that has no encoding, a label bound
/// twice) is remembered and `finish()` throws it. Constants requested while code is written are laid
/// out behind the code and addressed relative to the instruction pointer.
package final class Assembler {
  /// The bytes so far.
  package private(set) var bytes: [UInt8] = []
  private var labelPositions: [Int?] = []
  private var fixups: [Fixup] = []
  private var constants: [(words: [UInt32], label: Label)] = []
  private var constantLabels: [[UInt32]: Label] = [:]
  private var firstError: ApusError?
  private let refused = InstructionExtension.refused

  /// A four-byte displacement to fill in: relative to `end`, the end of its instruction.
  private struct Fixup {
    var position: Int
    var end: Int
    var label: Label
    var addend: Int
  }

  /// An empty assembler.
  package init() {}

  // MARK: Labels

  /// A new label, not yet bound.
  package func label() -> Label {
    labelPositions.append(nil)
    return Label(index: labelPositions.count - 1)
  }

  /// Binds `label` to the current position.
  package func bind(_ label: Label) {
    if labelPositions[label.index] != nil { fail("label bound twice") }
    labelPositions[label.index] = bytes.count
  }

  /// A new label bound to the current position.
  package func here() -> Label {
    let new = label()
    bind(new)
    return new
  }

  func position(of label: Label) -> Int? { labelPositions[label.index] }

  // MARK: Constants

  /// The address of 32-bit `words` behind the code; equal constants share a place.
  package func constant(words: [UInt32]) -> Address {
    if let known = constantLabels[words] { return Address(label: known) }
    let new = label()
    constantLabels[words] = new
    constants.append((words, new))
    return Address(label: new)
  }

  /// A constant for every lane of a register of `width`: one broadcast element where the embedded
  /// broadcast exists (512 bits), a whole vector elsewhere.
  package func constant(_ bits: UInt32, _ width: VectorWidth) -> Address {
    width == .zmm
      ? constant(words: [bits]).broadcasting
      : constant(words: Array(repeating: bits, count: 8))
  }

  // MARK: Emission

  func emit(_ byte: UInt8) { bytes.append(byte) }

  func emit32(_ value: Int) {
    let word = UInt32(truncatingIfNeeded: value)
    for shift in stride(from: UInt32(0), to: 32, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: word >> shift))
    }
  }

  func emit64(_ value: Int) {
    emit32(value)
    emit32(value >> 32)
  }

  /// A displacement to `label`, with `trailing` further bytes of the instruction behind it.
  func emitRelative(to label: Label, addend: Int = 0, trailing: Int = 0) {
    fixups.append(
      Fixup(
        position: bytes.count, end: bytes.count + 4 + trailing, label: label, addend: addend))
    emit32(0)
  }

  /// Notes that an instruction belongs to an extension.
  func use(_ needed: InstructionExtension) {
    guard !refused.isEmpty, refused.contains(needed) else { return }
    fail("an instruction of \(needed), which the code must do without")
  }

  /// Remembers the first error.
  func fail(_ message: String) {
    if firstError == nil { firstError = ApusError(.internalError, "assembler: \(message)") }
  }

  /// Remembers an error of the code generator that uses this assembler.
  package func fail(_ error: ApusError) {
    if firstError == nil { firstError = error }
  }

  /// Pads with no-operation instructions to a multiple of `alignment`.
  package func align(_ alignment: Int) {
    // The processor's recommended multi-byte forms, longest nine bytes.
    let forms: [[UInt8]] = [
      [0x90], [0x66, 0x90], [0x0F, 0x1F, 0x00], [0x0F, 0x1F, 0x40, 0x00],
      [0x0F, 0x1F, 0x44, 0x00, 0x00], [0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00],
      [0x0F, 0x1F, 0x80, 0, 0, 0, 0], [0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0],
      [0x66, 0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0],
    ]
    var missing = (alignment - bytes.count % alignment) % alignment
    while missing > 0 {
      let step = min(missing, forms.count)
      bytes += forms[step - 1]
      missing -= step
    }
  }

  /// The finished code with its constants; throws the first error.
  package func finish() throws(ApusError) -> [UInt8] {
    // Whole vectors first, so that their alignment costs one gap.
    let wideFirst = constants.sorted { $0.words.count > $1.words.count }
    if !wideFirst.isEmpty { while bytes.count % 64 != 0 { emit(0xCC) } }
    for (words, label) in wideFirst {
      bind(label)
      for word in words { emit32(Int(word)) }
    }
    constants = []
    for fixup in fixups {
      guard let target = labelPositions[fixup.label.index] else {
        fail("label used but never bound")
        continue
      }
      let distance = target + fixup.addend - fixup.end
      guard let narrow = Int32(exactly: distance) else {
        fail("label out of reach")
        continue
      }
      let word = UInt32(bitPattern: narrow)
      for byte in 0..<4 {
        bytes[fixup.position + byte] = UInt8(truncatingIfNeeded: word >> UInt32(8 * byte))
      }
    }
    fixups = []
    if let firstError { throw firstError }
    return bytes
  }
}
