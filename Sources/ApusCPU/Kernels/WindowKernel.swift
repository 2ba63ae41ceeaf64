// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code that slides a window over channels-last pixels, channel by channel: depthwise
/// convolution, largest element, sum.
///
/// Code computes some output pixels side by side, going over channels in vectors; the number of window
/// rows is an argument, the window columns of each pixel are fixed. A call goes on to the pixels behind as often as it
/// is told.
package final class WindowKernel: Sendable {
  /// What is done with the elements of a window.
  package enum Operation: Hashable, Sendable {
    /// Sum of the products with the weights.
    case multiply
    /// The largest; NaN if there is one. Nothing gives minus infinity.
    case maximum
    /// Sum, times the factor argument.
    case sum
  }

  /// What shapes the code; steps in bytes.
  package struct Shape: Hashable, Sendable {
    /// For each output pixel the window columns that lie within the input.
    package var inside: [Range<Int>]
    /// Vectors of channels computed at once.
    package var vectors: Int
    /// Rows of a window that lies within the input; code for so many is laid out without a loop.
    package var fullRows: Int
    /// Channels of a pixel.
    package var channels: Int
    /// Those that a call computes.
    package var count: Int
    /// Elements from one output pixel to the next.
    package var resultPitch: Int
    /// From the window of one output pixel to the next one's.
    package var pixelStep: Int
    /// From one window column to the next.
    package var columnStep: Int
    package var weightRowStep: Int
    /// From one window row to the next.
    package var rowStep: Int
    package var operation: Operation
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    /// The element types of the operands and of the result.
    package var operandTypes: [DataType]
    package var resultType: DataType
    /// The element type of the input; integers are only compared.
    package var inputType: DataType
    /// The element type of the weights.
    package var weightType: DataType
    package var isa: ISA

    /// Output pixels.
    var pixels: Int { inside.count }
    /// Window columns of any pixel.
    var columns: Range<Int> {
      (inside.map(\.lowerBound).min() ?? 0)..<(inside.map(\.upperBound).max() ?? 0)
    }
  }

  /// Words of the argument block, which a call changes where it goes on.
  package enum Argument {
    /// Column 0 of the first pixel's window, whether or not it lies within the input.
    package static let input = 0
    package static let weights = 1
    package static let output = 2
    package static let rows = 3
    /// The factor of `sum`: the bits of a float.
    package static let factor = 4
    /// How many times as many pixels, one behind the other.
    package static let repeats = 5
    package static let operands = 6
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    let bytes: [UInt8]
    if let narrow = NarrowMaximumGenerator(shape) {
      bytes = try narrow.generate()
    } else {
      bytes = try WindowGenerator(shape).generate()
    }
    memory = try ExecutableMemory(bytes, name: "window \(shape.isa.rawValue)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

extension WindowKernel.Shape {
  /// The code behind all channels: goes on with the pixels behind, or not.
  func goOn(_ a: Assembler, to pixels: Label) {
    typealias Argument = WindowKernel.Argument
    func move(_ argument: Int, by bytes: Int) {
      a.mov(.rbx, Address(.rdi, 8 * argument))
      a.add(.rbx, bytes)
      a.mov(Address(.rdi, 8 * argument), .rbx)
    }
    move(Argument.input, by: self.pixels * pixelStep)
    move(Argument.output, by: self.pixels * resultPitch * ElementAccess.byteCount(resultType))
    for (index, kind) in operands.enumerated() where kind == .full {
      move(Argument.operands + index, by: self.pixels * channels * ElementAccess.byteCount(operandTypes[index]))
    }
    a.mov(.rbx, Address(.rdi, 8 * Argument.repeats))
    a.dec(.rbx)
    a.mov(Address(.rdi, 8 * Argument.repeats), .rbx)
    a.j(.notEqual, pixels)
  }
}

private struct WindowGenerator {
  let shape: WindowKernel.Shape
  let a = Assembler()
  let isa: ISA
  let width: VectorWidth
  let tail: TailMask
  private let registers: [Vec]

  /// rax, rdx: input and weights at the current channels; rcx: output; r8..: operands.
  private let operandRegisters: [R64] = [.r8, .r9, .r10, .r11]

  init(_ shape: WindowKernel.Shape) {
    self.shape = shape
    isa = shape.isa
    width = isa.width
    let width = shape.isa.width
    var all = (0..<shape.isa.registerCount).map { Vec($0, width) }
    tail = shape.isa == .avx512 ? .mask(Mask(7)) : .lanes(all.removeLast(), count: shape.count % width.lanes)
    registers = all
  }

  func generate() throws(ApusError) -> [UInt8] {
    guard shape.operands.count <= operandRegisters.count,
      shape.epilogue.inputCount <= shape.operands.count + 1
    else {
      throw ApusError(.notYetSupported, "an epilogue of \(shape.operands.count) operands")
    }
    for register in [R64.rbx, .rbp, .r12, .r13, .r14] { a.push(register) }
    let pixels = a.here()
    a.mov(.rax, Address(.rdi, 8 * WindowKernel.Argument.input))
    a.mov(.rdx, Address(.rdi, 8 * WindowKernel.Argument.weights))
    a.mov(.rcx, Address(.rdi, 8 * WindowKernel.Argument.output))
    a.mov(.r12, Address(.rdi, 8 * WindowKernel.Argument.rows))
    for index in 0..<shape.operands.count {
      a.mov(operandRegisters[index], Address(.rdi, 8 * (WindowKernel.Argument.operands + index)))
    }
    let full = shape.count / width.lanes
    let groups = full / shape.vectors
    if groups > 0 {
      a.mov(.r13, groups)
      let loop = a.here()
      try block(shape.vectors, masked: false)
      advance(shape.vectors)
      a.dec(.r13)
      a.j(.notEqual, loop)
    }
    for _ in 0..<(full % shape.vectors) {
      try block(1, masked: false)
      advance(1)
    }
    if shape.count % width.lanes != 0 {
      a.prepareTail(tail, count: shape.count % width.lanes, scratch: .rbx)
      try block(1, masked: true)
    }
    shape.goOn(a, to: pixels)
    for register in [R64.r14, .r13, .r12, .rbp, .rbx] { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private func advance(_ vectors: Int) {
    let lanes = vectors * isa.lanes
    a.add(.rax, lanes * ElementAccess.byteCount(shape.inputType))
    a.add(.rdx, lanes * ElementAccess.byteCount(shape.weightType))
    a.add(.rcx, lanes * ElementAccess.byteCount(shape.resultType))
    for (index, kind) in shape.operands.enumerated() where kind != .scalar {
      a.add(operandRegisters[index], lanes * ElementAccess.byteCount(shape.operandTypes[index]))
    }
  }

  /// `vectors` vectors of channels of all pixels.
  private func block(_ vectors: Int, masked: Bool) throws(ApusError) {
    let count = shape.pixels * vectors
    var sums = Array(registers.prefix(count))
    var free = Array(registers.dropFirst(count))
    guard free.count > vectors + Self.loadedAtOnce else {
      throw ApusError(.notYetSupported, "a window of \(shape.pixels) pixels does not fit")
    }
    let tail: TailMask? = masked ? self.tail : nil
    let splits = splitsPairs(vectors, tail)
    if splits, let mask = free.last {
      a.vbroadcastss(mask, a.constant(words: [0xFFFF_0000]))
    }
    if shape.operation == .maximum {
      let lowest = a.constant(words: [
        shape.inputType.isInteger
          ? UInt32(truncatingIfNeeded: shape.inputType.integerRange.lowerBound)
          : Float(-Double.infinity).bitPattern
      ])
      a.vbroadcastss(sums[0], lowest)
      for sum in sums.dropFirst() { a.vmovups(sum, sums[0]) }
    } else {
      for sum in sums { a.vxorps(sum, sum, sum) }
    }
    let finished = a.label()
    let unrolls = shape.operation == .multiply && shape.fullRows * shape.columns.count <= Self.mostUnrolled
    if unrolls {
      let someRows = a.label()
      a.cmp(.r12, shape.fullRows)
      a.j(.notEqual, someRows)
      for row in 0..<shape.fullRows {
        multiply(
          Address(.rax, row * shape.rowStep), Address(.rdx, row * shape.weightRowStep), sums, free,
          vectors, tail)
      }
      a.jmp(finished)
      a.bind(someRows)
    }
    a.mov(.rbx, .rax)
    a.mov(.rbp, .rdx)
    a.mov(.r14, .r12)
    a.test(.r14, .r14)
    a.j(.lessOrEqual, finished)
    let row = a.here()
    if shape.operation == .multiply {
      multiply(Address(.rbx), Address(.rbp), sums, free, vectors, tail)
    } else {
      for column in shape.columns { reduce(column, sums, free, vectors, tail) }
    }
    a.add(.rbx, shape.rowStep)
    if shape.operation == .multiply { a.add(.rbp, shape.weightRowStep) }
    a.dec(.r14)
    a.j(.notEqual, row)
    a.bind(finished)
    if splits { joinPairs(&sums, &free) }
    if shape.operation == .sum {
      a.vbroadcastss(free[0], Address(.rdi, 8 * WindowKernel.Argument.factor))
      for sum in sums { a.vmulps(sum, sum, free[0]) }
    }
    let pairs = vectors == 2 && !masked && ElementAccess.pairs(shape.resultType, isa)
    for pixel in 0..<shape.pixels {
      for vector in 0..<vectors {
        let sum = sums[pixel * vectors + vector]
        let lane = vector * isa.lanes
        let types = [shape.inputType.isInteger ? shape.inputType : .float32] + shape.operandTypes
        let emitter = ExpressionEmitter(a, isa: isa, free: free, tail: tail, types: types) { input in
          if input == 0 { return .owned(sum) }
          let bytes = ElementAccess.byteCount(types[input])
          let address = Address(operandRegisters[input - 1])
          let place: Address
          switch shape.operands[input - 1] {
          case .scalar: return .element(address)
          case .perColumn: place = address.offset(lane * bytes)
          case .full: place = address.offset((pixel * shape.channels + lane) * bytes)
          }
          return masked ? .tail(place) : .memory(place)
        }
        let value = try emitter.emit(shape.epilogue, as: shape.resultType)
        if pairs, value != sum { a.vmovups(sum, value) }
        if pairs, vector == 0 { continue }
        let first = pixel * shape.resultPitch + (pairs ? 0 : lane)
        let place = Address(.rcx, first * ElementAccess.byteCount(shape.resultType))
        if pairs {
          a.storeElements(place, sums[pixel * vectors], sum)
        } else {
          a.storeElements(place, value, shape.resultType, tail)
        }
      }
    }
  }

  /// Windows of more elements have a loop over their rows.
  private static let mostUnrolled = 25

  /// A row of the windows, times the weights. An input pixel that lies in the windows of several output
  /// pixels is read, and widened, once for all of them.
  private func multiply(
    _ input: Address, _ weights: Address, _ sums: [Vec], _ free: [Vec], _ vectors: Int,
    _ tail: TailMask?
  ) {
    let splits = splitsPairs(vectors, tail)
    let usable = splits ? Array(free.dropLast()) : free
    let atOnce = max(1, (usable.count - Self.loadedAtOnce) / vectors)
    let all = shape.columns
    for first in stride(from: all.lowerBound, to: all.upperBound, by: atOnce) {
      let columns = first..<min(all.upperBound, first + atOnce)
      let held = Array(usable.prefix(columns.count * vectors))
      let spare = Array(usable.dropFirst(held.count))
      func factors(_ column: Int) -> [Vec] {
        let start = (column - first) * vectors
        return Array(held[start..<start + vectors])
      }
      let weightBytes = ElementAccess.byteCount(shape.weightType)
      for column in columns {
        load(
          factors(column), weights.offset(column * shape.channels * weightBytes), shape.weightType,
          tail, splits ? free.last : nil)
      }
      var uses: [Int: [(pixel: Int, column: Int)]] = [:]
      for pixel in 0..<shape.pixels {
        for column in columns where shape.inside[pixel].contains(column) {
          uses[pixel * shape.pixelStep + column * shape.columnStep, default: []].append((pixel, column))
        }
      }
      var loads = 0
      // From left to right, so that every sum adds its columns in their order.
      for (offset, users) in uses.sorted(by: { $0.key < $1.key }) {
        // What is used once is read by the instruction that uses it, where that can be.
        if users.count == 1, tail == nil, shape.inputType == .float32 {
          for vector in 0..<vectors {
            a.vfmadd231ps(
              sums[users[0].pixel * vectors + vector], factors(users[0].column)[vector],
              input.offset(offset + vector * isa.lanes * 4))
          }
          continue
        }
        let loaded = (0..<vectors).map { spare[(loads + $0) % spare.count] }
        loads += vectors
        load(loaded, input.offset(offset), shape.inputType, tail, splits ? free.last : nil)
        for (pixel, column) in users {
          for (vector, factor) in factors(column).enumerated() {
            a.vfmadd231ps(sums[pixel * vectors + vector], factor, loaded[vector])
          }
        }
      }
    }
  }

  /// Loads vectors side by side; with a mask of the upper halves of words, the even elements into the first
  /// register and the odd ones into the second.
  private func load(
    _ to: [Vec], _ place: Address, _ type: DataType, _ tail: TailMask?, _ upperHalves: Vec?
  ) {
    if let upperHalves {
      a.vmovups(to[1], place)
      a.vpslld(to[0], to[1], 16)
      a.vandps(to[1], to[1], upperHalves)
      return
    }
    for (vector, register) in to.enumerated() {
      a.loadElements(
        register, place.offset(vector * isa.lanes * ElementAccess.byteCount(type)), type, tail)
    }
  }

  /// Whether two vectors of BF16 are taken apart into even and odd elements, which is less work than widening
  /// them one after the other; their sums are put in order at the end.
  private func splitsPairs(_ vectors: Int, _ tail: TailMask?) -> Bool {
    shape.operation == .multiply && vectors == 2 && tail == nil && isa == .avx512
      && shape.inputType == .bfloat16 && shape.weightType == .bfloat16
  }

  /// Puts sums of even and odd elements in order.
  private func joinPairs(_ sums: inout [Vec], _ free: inout [Vec]) {
    let (lower, upper) = (free[0], free[1])
    let order: [UInt32] = (0..<16).map { $0 / 2 + $0 % 2 * 16 }
    a.vmovups(lower, a.constant(words: order))
    a.vmovups(upper, a.constant(words: order.map { $0 + 8 }))
    for pixel in 0..<shape.pixels {
      let (even, odd) = (sums[2 * pixel], sums[2 * pixel + 1])
      a.vmovups(free[2], even)
      a.vpermt2d(free[2], lower, odd)
      a.vpermt2d(even, upper, odd)
      (sums[2 * pixel], sums[2 * pixel + 1], free[2]) = (free[2], even, odd)
    }
  }

  /// Registers for input pixels in flight.
  private static let loadedAtOnce = 2

  /// One window column of the current row, for all pixels: sums or the largest element.
  private func reduce(
    _ column: Int, _ sums: [Vec], _ free: [Vec], _ vectors: Int, _ tail: TailMask?
  ) {
    let scratch = free[0]
    let spare = Array(free.dropFirst(vectors))
    for pixel in 0..<shape.pixels where shape.inside[pixel].contains(column) {
      for vector in 0..<vectors {
        let sum = sums[pixel * vectors + vector]
        let place = Address(
          .rbx,
          pixel * shape.pixelStep + column * shape.columnStep
            + vector * isa.lanes * ElementAccess.byteCount(shape.inputType))
        let loaded = spare[(pixel * vectors + vector) % spare.count]
        if shape.inputType.isInteger {
          a.loadElements(loaded, place, shape.inputType, tail)
          a.vpmaxsd(sum, sum, loaded)
          continue
        }
        // Whole vectors of single precision are read by the instruction that uses them.
        let isDirect = tail == nil && shape.inputType == .float32
        if !isDirect { a.loadElements(loaded, place, shape.inputType, tail) }
        if shape.operation == .sum {
          if isDirect { a.vaddps(sum, sum, place) } else { a.vaddps(sum, sum, loaded) }
        } else {
          if isDirect { a.vmovups(loaded, place) }
          maximum(sum, loaded, scratch)
        }
      }
    }
  }

  /// `sum = max(sum, element)`, keeping a NaN of either.
  private func maximum(_ sum: Vec, _ element: Vec, _ scratch: Vec) {
    // The hardware gives the second operand when either is NaN: a NaN element wins at once, a NaN sum
    // is put back.
    if isa == .avx512 {
      a.vcmpps(Mask(1), sum, sum, .ordered)
      a.vmaxps(sum, sum, element, mask: Mask(1))
    } else {
      a.vcmpps(scratch, sum, sum, .unordered)
      a.vmaxps(element, sum, element)
      a.vblendvps(sum, mask: scratch, element, sum)
    }
  }
}
