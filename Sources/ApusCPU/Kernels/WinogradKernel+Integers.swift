// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// The transform of bytes into 16-bit integers, which is exact: two channels lie in each lane. The bytes'
/// zero point is taken off first, as numbers near zero make small errors of what they are multiplied with.
extension WinogradGenerator {
  func generateIntegers(_ shape: WinogradKernel.Input) throws(ApusError) -> [UInt8] {
    guard isa != .portable, m == 4 else {
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
      transformIntegers(shape, rows, count: channelsPerVector)
      for row in rows { a.add(row, channelsPerVector) }
      a.add(.r11, width.bytes)
      a.dec(.rsi)
      a.j(.notEqual, loop)
    }
    let rest = channels % channelsPerVector
    if rest > 0 {
      if isa == .avx512 {
        a.mov(.rsi, (1 << rest) - 1)
        a.kmovd(someChannels, .rsi)
      }
      transformIntegers(shape, rows, count: rest)
    }
    return try leave([.rbp])
  }

  private var zeroPoint: Vec { registers[size] }
  private var someChannels: Mask { Mask(7) }

  /// Loads the bytes of so many channels.
  private func loadChannels(_ to: Vec, _ from: Address, count: Int) {
    if count == 2 * isa.lanes { return a.vpmovzxbw(to, from) }
    if isa == .avx512 { return a.vpmovzxbw(to, from, mask: someChannels) }
    a.loadBytes(to, from, count: count)
    a.vpmovzxbw(to, to.at(.xmm))
  }

  /// Both sides for one vector of channels, of which `count` exist. Rows of transformed tiles have room for whole
  /// vectors.
  private func transformIntegers(_ shape: WinogradKernel.Input, _ rows: [R64], count: Int) {
    let program = LinearProgram.inputOfIntegers
    let inputs = Array(registers.prefix(size))
    let scratch = registers[size + 1]
    let free = Array(registers.dropFirst(size + 2))
    for column in 0..<size {
      if shape.columns.contains(column) {
        for row in 0..<size {
          loadChannels(inputs[row], Address(rows[row], column * shape.pixelStep), count: count)
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
        a.vmovups(Address(.r11, (row * size + column) * shape.planeStep), value)
        return false
      }
    }
  }
}
