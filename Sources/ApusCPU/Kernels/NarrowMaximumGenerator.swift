// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// The largest elements of windows of bytes or BF16, compared as they are: 64 bytes or 32 numbers in an
/// instruction, where widened ones would be 16.
///
/// BF16 numbers become signed 16-bit integers in the same order: bits below the sign of negative numbers are
/// turned around, and all are moved down by 127, so that NaNs with the sign bit come out on top with the others.
/// An input pixel is read, and turned so, once for all output pixels in whose windows it lies.
struct NarrowMaximumGenerator {
  private let shape: WindowKernel.Shape
  private let a = Assembler()
  private let elementBytes: Int
  private let sums: [Vec]
  private let columns: [Vec]
  private let loaded: [Vec]
  private let scratch = Vec(29, .zmm)
  private let magnitude = Vec(30, .zmm)
  private let shift = Vec(31, .zmm)
  private let tail = Mask(7)
  private static let inFlight = 4

  /// Nil for what it is not for.
  init?(_ shape: WindowKernel.Shape) {
    guard shape.isa == .avx512, shape.operation == .maximum, shape.inputType == shape.resultType,
      [.uint8, .int8, .bfloat16].contains(shape.inputType), shape.operands.isEmpty,
      shape.epilogue == .input(0), shape.pixels + 2 * Self.inFlight <= 29
    else { return nil }
    self.shape = shape
    elementBytes = ElementAccess.byteCount(shape.inputType)
    let all = (0..<29).map { Vec($0, .zmm) }
    sums = Array(all.prefix(shape.pixels))
    columns = Array(all.dropFirst(shape.pixels).prefix(Self.inFlight))
    loaded = Array(all.dropFirst(shape.pixels + Self.inFlight).prefix(Self.inFlight))
  }

  /// rax: input at the current channels; rcx: output; r12: rows; r13: vectors left; rbx, r14: the current row of a window that is not whole.
  func generate() throws(ApusError) -> [UInt8] {
    for register in [R64.rbx, .r12, .r13, .r14] { a.push(register) }
    let pixels = a.here()
    a.mov(.rax, Address(.rdi, 8 * WindowKernel.Argument.input))
    a.mov(.rcx, Address(.rdi, 8 * WindowKernel.Argument.output))
    a.mov(.r12, Address(.rdi, 8 * WindowKernel.Argument.rows))
    if shape.inputType == .bfloat16 {
      a.vbroadcastss(magnitude, a.constant(words: [0x7FFF_7FFF]))
      a.vbroadcastss(shift, a.constant(words: [0x007F_007F]))
    }
    let bytes = shape.count * elementBytes
    if bytes / 64 > 0 {
      a.mov(.r13, bytes / 64)
      let loop = a.here()
      block(nil)
      a.add(.rax, 64)
      a.add(.rcx, 64)
      a.dec(.r13)
      a.j(.notEqual, loop)
    }
    if bytes % 64 != 0 {
      // 63 bytes leave no bit to borrow from.
      a.mov(.rbx, (1 << (bytes % 64)) &- 1)
      a.kmovq(tail, .rbx)
      block(tail)
    }
    shape.goOn(a, to: pixels)
    for register in [R64.r14, .r13, .r12, .rbx] { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// 64 bytes of channels of all pixels.
  private func block(_ mask: Mask?) {
    a.vbroadcastss(sums[0], a.constant(words: [lowest]))
    for sum in sums.dropFirst() { a.vmovups(sum, sums[0]) }
    let (someRows, finished) = (a.label(), a.label())
    a.cmp(.r12, shape.fullRows)
    a.j(.notEqual, someRows)
    compare(Address(.rax), rows: shape.fullRows, mask)
    a.jmp(finished)
    a.bind(someRows)
    a.mov(.rbx, .rax)
    a.mov(.r14, .r12)
    a.test(.r14, .r14)
    a.j(.lessOrEqual, finished)
    let row = a.here()
    compare(Address(.rbx), rows: 1, mask)
    a.add(.rbx, shape.rowStep)
    a.dec(.r14)
    a.j(.notEqual, row)
    a.bind(finished)
    for (pixel, sum) in sums.enumerated() {
      if shape.inputType == .bfloat16 {
        a.vpaddw(sum, sum, shift)
        turn(sum, scratch)
      }
      a.vmovdqu8(Address(.rcx, pixel * shape.resultPitch * elementBytes), sum, mask: mask)
    }
  }

  /// Rows of all windows. Of an input column the largest element goes into the pixels in whose windows it lies.
  private func compare(_ input: Address, rows: Int, _ mask: Mask?) {
    for (index, (offset, pixels)) in readers.enumerated() {
      let column = columns[index % columns.count]
      for row in 0..<rows {
        let element = row == 0 ? column : loaded[(index + row) % loaded.count]
        a.vmovdqu8(element, input.offset(offset + row * shape.rowStep), mask: mask)
        if shape.inputType == .bfloat16 {
          turn(element, scratch)
          a.vpsubw(element, element, shift)
        }
        if row > 0 { maximum(column, element) }
      }
      for pixel in pixels { maximum(sums[pixel], column) }
    }
  }

  /// The input places of a row from left to right, each with the output pixels whose windows it lies in.
  private var readers: [(offset: Int, pixels: [Int])] {
    var readers: [Int: [Int]] = [:]
    for pixel in 0..<shape.pixels {
      for column in shape.inside[pixel] {
        readers[pixel * shape.pixelStep + column * shape.columnStep, default: []].append(pixel)
      }
    }
    return readers.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }

  /// Turns around the bits below the sign of negative numbers; twice is nothing.
  private func turn(_ numbers: Vec, _ scratch: Vec) {
    a.vpsraw(scratch, numbers, 15)
    a.vpternlogd(numbers, scratch, magnitude, Self.flipsWhereBothAreSet)
  }

  /// `to ^ (a & b)` for `vpternlogd`.
  private static let flipsWhereBothAreSet: UInt8 = 0x78

  private func maximum(_ sum: Vec, _ element: Vec) {
    switch shape.inputType {
    case .uint8: a.vpmaxub(sum, sum, element)
    case .int8: a.vpmaxsb(sum, sum, element)
    default: a.vpmaxsw(sum, sum, element)
    }
  }

  /// What a window of nothing gives, which is below everything: minus infinity as an integer for BF16.
  private var lowest: UInt32 {
    switch shape.inputType {
    case .uint8: 0
    case .int8: 0x8080_8080
    default: 0x8000_8000
    }
  }
}
