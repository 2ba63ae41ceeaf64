// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code for depthwise convolution of unsigned bytes with signed ones, channels last.
///
/// The elements of up to four window rows of one column and channel are put side by side into a 32-bit
/// lane, where one instruction multiplies them with their weights and adds them up. What is put together
/// for a column serves every output pixel whose window has that column, and where windows are three rows high
/// or less, those of the next output row, too: their weights are shifted by a byte.
///
/// A call computes `pixels` output pixels side by side, of one output row or two, for all channels, a vector
/// of 32-bit lanes at a time.
package final class ByteWindowKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    package var pixels: Int
    /// Output rows, the second one window row below the first, and pixels from one to the next.
    package var outputRows = 1
    package var outputWidth = 0
    package var channels: Int
    /// Elements from one output pixel to the next.
    package var resultPitch: Int
    package var kernelHeight: Int
    package var kernelWidth: Int
    /// Input pixels between the windows of neighbouring output pixels, and between window columns.
    package var stride: Int
    package var dilation: Int
    /// Window columns inside the input; the others hold `padValue`.
    package var inside: Range<Int>
    package var padValue: Int
    /// Bytes from a row of the input to the next, and how many rows the next windows are further down.
    package var rowBytes: Int
    package var rowsAhead: Int
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    /// The element types of the operands and of the result.
    package var operandTypes: [DataType]
    package var resultType: DataType
    /// Whether bytes can be permuted across a whole register.
    package var permutesBytes: Bool
    package var isa: ISA

    /// Lanes of four rows that a window column takes.
    var rowGroups: Int { (kernelHeight + 3) / 4 }

    /// Input rows that are read.
    package var rowCount: Int { kernelHeight + outputRows - 1 }
  }

  /// Words of the argument block; the addresses of the epilogue's operands follow those of the window's
  /// rows.
  package enum Argument {
    package static let output = 0
    package static let weights = 1
    package static let rows = 2
  }

  /// Window rows that there are registers for.
  package static let mostRows = 7
  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    memory = try ExecutableMemory(ByteWindowGenerator(shape).generate(), name: "byte window")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

private struct ByteWindowGenerator {
  let shape: ByteWindowKernel.Shape
  let a = Assembler()
  let isa: ISA
  let lanes: Int
  let tail: TailMask
  let sums: [Vec]
  /// The order in which bytes of four rows become lanes.
  let order: Vec
  let outside: Vec
  let free: [Vec]

  private let rowRegisters: [R64] = [.rax, .rdx, .rsi, .r8, .r9, .r10, .r11]
  private let operandRegisters: [R64] = [.r12, .r13, .r14, .r15]
  private let saved: [R64] = [.rbx, .rbp, .r12, .r13, .r14, .r15]

  init(_ shape: ByteWindowKernel.Shape) {
    self.shape = shape
    isa = shape.isa
    lanes = isa.lanes
    var all = (0..<shape.isa.registerCount).map { Vec($0, shape.isa.width) }
    if shape.isa == .avx512 {
      tail = .mask(Mask(7))
    } else {
      tail = .lanes(all.removeLast(), count: shape.channels % shape.isa.lanes)
    }
    outside = all.removeLast()
    order = shape.permutesBytes ? all.removeLast() : outside
    sums = Array(all.prefix(shape.pixels * shape.outputRows))
    free = Array(all.dropFirst(sums.count))
  }

  private var rows: [R64] { Array(rowRegisters.prefix(shape.rowCount)) }
  private var keepsWeights: Bool { shape.kernelWidth * shape.rowGroups <= (isa == .avx512 ? 10 : 4) }

  func generate() throws(ApusError) -> [UInt8] {
    guard shape.operands.count <= operandRegisters.count,
      shape.epilogue.inputCount <= shape.operands.count + 1, sums.count <= isa.registerCount / 2,
      !shape.permutesBytes || isa == .avx512,
      shape.kernelHeight <= ByteWindowKernel.mostRows,
      shape.outputRows == 1 || (shape.outputRows == 2 && shape.rowCount <= 4 && keepsWeights)
    else {
      throw ApusError(
        .notYetSupported, "a window of \(shape.kernelHeight) rows, \(shape.operands.count) operands")
    }
    for register in saved { a.push(register) }
    a.mov(.rcx, argument(ByteWindowKernel.Argument.output))
    a.mov(.rbx, argument(ByteWindowKernel.Argument.weights))
    for (index, row) in rows.enumerated() {
      a.mov(row, argument(ByteWindowKernel.Argument.rows + index))
    }
    for index in shape.operands.indices {
      a.mov(operandRegisters[index], argument(ByteWindowKernel.Argument.rows + rows.count + index))
    }
    prepareRegisters()
    try overChannels()
    for register in saved.reversed() { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }

  private func prepareRegisters() {
    if shape.permutesBytes {
      let indices = (0..<16).map { UInt32($0) * 0x0101_0101 + 0x3020_1000 }
      a.vmovups(order, a.constant(words: indices))
    }
    if shape.inside.count < shape.kernelWidth {
      let pad = UInt32(truncatingIfNeeded: shape.padValue & 255) * 0x0101_0101
      a.vbroadcastss(outside, a.constant(words: [pad]))
    }
  }

  /// Four blocks of channels are a cache line of the input.
  private func overChannels() throws(ApusError) {
    let whole = shape.channels / lanes
    if whole >= 4 {
      a.mov(.rbp, whole / 4)
      let loop = a.here()
      for block in 0..<4 { try self.block(block, masked: false) }
      advance(4)
      a.dec(.rbp)
      a.j(.notEqual, loop)
    }
    for block in 0..<whole % 4 { try self.block(block, masked: false) }
    if shape.channels % lanes != 0 {
      a.prepareTail(tail, count: shape.channels % lanes, scratch: .rbp)
      try block(whole % 4, masked: true)
    }
  }

  private func advance(_ blocks: Int) {
    for row in rows { a.add(row, blocks * lanes) }
    a.add(.rbx, blocks * shape.rowGroups * isa.width.bytes)
    a.add(.rcx, blocks * lanes * ElementAccess.byteCount(shape.resultType))
    for (index, kind) in shape.operands.enumerated() where kind != .scalar {
      a.add(
        operandRegisters[index], blocks * lanes * ElementAccess.byteCount(shape.operandTypes[index]))
    }
  }

  /// Where the weights of a window column are for a block of channels.
  private func weights(_ column: Int, _ group: Int, _ block: Int) -> Address {
    let panels = (shape.channels + lanes - 1) / lanes
    return Address(.rbx, ((column * panels + block) * shape.rowGroups + group) * isa.width.bytes)
  }

  /// A vector of channels of all pixels.
  private func block(_ block: Int, masked: Bool) throws(ApusError) {
    for sum in sums { a.vxorps(sum, sum, sum) }
    var spare = free
    var kept: [Vec] = []
    if keepsWeights {
      for column in 0..<shape.kernelWidth {
        for group in 0..<shape.rowGroups {
          kept.append(spare.removeFirst())
          a.vmovups(kept[kept.count - 1], weights(column, group, block))
        }
      }
    }
    // The second row's windows start a row, a byte of a lane, later.
    let shifted = shape.outputRows == 2 ? kept.map { (spare.removeFirst(), $0) } : []
    for (later, weights) in shifted { a.vpslld(later, weights, 8) }
    func multiply(_ pixel: Int, _ data: Vec, _ column: Int, _ group: Int) {
      guard keepsWeights else {
        return multiplyAdd(sums[pixel], data, weights(column, group, block))
      }
      multiplyAdd(sums[pixel], data, kept[column * shape.rowGroups + group])
      if shape.outputRows == 2 { multiplyAdd(sums[shape.pixels + pixel], data, shifted[column].0) }
    }
    for (place, uses) in inputColumns() {
      if block == 0 { prefetch(place) }
      for group in 0..<shape.rowGroups {
        let data = spare[0]
        spare.append(spare.removeFirst())
        gather(data, spare[0], place * shape.channels + block * lanes, group, masked: masked)
        for (pixel, column) in uses { multiply(pixel, data, column, group) }
      }
    }
    for column in 0..<shape.kernelWidth where !shape.inside.contains(column) {
      for group in 0..<shape.rowGroups {
        for pixel in 0..<shape.pixels { multiply(pixel, outside, column, group) }
      }
    }
    try store(block, masked: masked)
  }

  private func multiplyAdd(_ sum: Vec, _ data: Vec, _ weights: some VectorOperand) {
    if isa == .avx512 { a.vpdpbusd(sum, data, weights) } else { a.vexVpdpbusd(sum, data, weights) }
  }

  /// Input columns from the left, with the pixels and window columns that use them.
  private func inputColumns() -> [(place: Int, uses: [(pixel: Int, column: Int)])] {
    var uses: [Int: [(pixel: Int, column: Int)]] = [:]
    for pixel in 0..<shape.pixels {
      for column in shape.inside {
        uses[pixel * shape.stride + column * shape.dilation, default: []].append((pixel, column))
      }
    }
    return uses.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }

  /// Fetches what the next row of windows reads first: the hardware does not follow several rows walked
  /// in short pieces.
  private func prefetch(_ place: Int) {
    for row in 1...shape.rowsAhead {
      a.prefetcht0(
        Address(rows[rows.count - 1], place * shape.channels + row * shape.rowBytes))
    }
  }

  /// Puts the bytes of up to four rows side by side.
  private func gather(_ data: Vec, _ scratch: Vec, _ offset: Int, _ group: Int, masked: Bool) {
    let members = rows[(group * 4)..<min(rows.count, group * 4 + 4)]
    let places = members.map { Address($0, offset) }
    guard places.count > 1, shape.permutesBytes, !masked else {
      for (index, place) in places.enumerated() {
        let lane = index == 0 ? data : scratch
        a.loadElements(lane, place, .uint8, masked ? tail : nil)
        if index > 0 {
          a.vpslld(lane, lane, UInt8(8 * index))
          a.vorps(data, data, lane)
        }
      }
      return
    }
    a.vmovups(data.at(.xmm), places[0])
    for index in 1..<places.count { a.vinserti32x4(data, data, places[index], UInt8(index)) }
    a.vpermb(data, order, data)
  }

  private func store(_ block: Int, masked: Bool) throws(ApusError) {
    let tail: TailMask? = masked ? self.tail : nil
    let types = [DataType.int32] + shape.operandTypes
    // Operands that are the same for all pixels wait in registers, if there are enough.
    let inner = shape.operands.indices.filter { shape.operands[$0] != .full }
    let needed = try ExpressionEmitter.registersNeeded(
      shape.epilogue, isa: isa, types: types, result: shape.resultType)
    let isHeld = needed + shape.operands.count < free.count
    var held: [Int: Vec] = [:]
    for (index, register) in zip(isHeld ? inner : [], free) {
      held[index] = register
      if shape.operands[index] == .scalar {
        a.vbroadcastss(register, Address(operandRegisters[index]))
      } else {
        a.loadElements(register, place(index, block, 0), shape.operandTypes[index], tail)
      }
    }
    var pool = free.filter { !held.values.contains($0) }
    for (index, sum) in sums.enumerated() {
      let (row, pixel) = index.quotientAndRemainder(dividingBy: shape.pixels)
      let number = row * shape.outputWidth + pixel
      let emitter = ExpressionEmitter(a, isa: isa, free: pool, tail: tail, types: types) { input in
        if input == 0 { return .owned(sum) }
        if let register = held[input - 1] { return .register(register) }
        if shape.operands[input - 1] == .scalar {
          return .element(Address(operandRegisters[input - 1]))
        }
        let place = place(input - 1, block, number)
        return masked ? .tail(place) : .memory(place)
      }
      let value = try emitter.emit(
        shape.epilogue, as: shape.resultType,
        narrowing: isa == .avx512 ? .saturatingUnsigned : .truncating)
      let element = number * shape.resultPitch + block * lanes
      let target = Address(.rcx, element * ElementAccess.byteCount(shape.resultType))
      if emitter.isUnsigned {
        a.vpmovusdb(target, value, mask: masked ? Mask(7) : nil)
      } else {
        a.storeElements(target, value, shape.resultType, tail)
      }
      pool = (pool + [sum]).filter { $0 != value } + [value]
    }
  }

  /// Where a vector of an operand lies for a pixel.
  private func place(_ index: Int, _ block: Int, _ pixel: Int) -> Address {
    let bytes = ElementAccess.byteCount(shape.operandTypes[index])
    let skipped = shape.operands[index] == .full ? pixel * shape.channels : 0
    return Address(operandRegisters[index], (skipped + block * lanes) * bytes)
  }
}
