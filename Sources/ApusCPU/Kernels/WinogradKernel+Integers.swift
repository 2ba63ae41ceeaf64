// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// The transform of bytes into 16-bit integers, which is exact: two channels lie in each lane. The bytes'
/// zero point is taken off first, as numbers near zero make small errors of what they are multiplied with.
extension WinogradGenerator {
  func generateIntegers(_ shape: WinogradKernel.Input) throws(ApusError) -> [UInt8] {
    guard isa == .avx512, m == 4 else {
      throw ApusError(.notYetSupported, "no transform of bytes for \(isa.rawValue)")
    }
    let rows: [R64] = [.rax, .rdx, .rcx, .r8, .r9, .r10]
    enter([.rbp])
    a.mov(.r11, argument(WinogradKernel.Argument.transformed))
    for (index, row) in rows.enumerated() {
      a.mov(row, argument(WinogradKernel.Argument.rows + index))
    }
    let channelsPerVector = 2 * isa.lanes
    if shape.padValue != 0 {
      let zero = UInt32(truncatingIfNeeded: shape.padValue & 0xFF)
      a.vbroadcastss(zeroPoint, a.constant(words: [zero << 16 | zero]))
    }
    let whole = channels / channelsPerVector
    if whole > 0 {
      a.mov(.rsi, whole)
      let loop = a.here()
      transformIntegers(shape, rows, mask: nil)
      for row in rows { a.add(row, channelsPerVector) }
      a.add(.r11, width.bytes)
      a.dec(.rsi)
      a.j(.notEqual, loop)
    }
    let rest = channels % channelsPerVector
    if rest > 0 {
      let mask = Mask(7)
      a.mov(.rsi, (1 << rest) - 1)
      a.kmovd(mask, .rsi)
      transformIntegers(shape, rows, mask: mask)
    }
    return try leave([.rbp])
  }

  private var zeroPoint: Vec { registers[size] }

  /// Both sides for one vector of channels.
  private func transformIntegers(_ shape: WinogradKernel.Input, _ rows: [R64], mask: Mask?) {
    let program = LinearProgram.inputOfIntegers
    let inputs = Array(registers.prefix(size))
    let scratch = registers[size + 1]
    let free = Array(registers.dropFirst(size + 2))
    for column in 0..<size {
      if shape.columns.contains(column) {
        for row in 0..<size {
          a.vpmovzxbw(inputs[row], Address(rows[row], column * shape.pixelStep), mask: mask)
          if shape.padValue != 0 { a.vpsubw(inputs[row], inputs[row], zeroPoint) }
        }
      } else {
        for input in inputs { a.vxorps(input, input, input) }
      }
      program.emit(a, inputs: inputs, free: free, .words(scratch: scratch)) { row, value in
        a.vmovups(between(row, column), value)
        return false
      }
    }
    for row in 0..<size {
      for column in 0..<size { a.vmovups(inputs[column], between(row, column)) }
      program.emit(a, inputs: inputs, free: free, .words(scratch: scratch)) { column, value in
        let place = Address(.r11, (row * size + column) * shape.planeStep)
        if let mask { a.vmovdqu16(place, value, mask: mask) } else { a.vmovups(place, value) }
        return false
      }
    }
  }
}
