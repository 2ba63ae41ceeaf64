// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code for depthwise convolution by dot products, channels last: of unsigned bytes with signed ones, or of
/// BF16.
///
/// The elements of up to four window rows (bytes) or two (BF16) of one column and channel are put side by side into a
/// 32-bit lane, where one instruction multiplies them with their weights and adds them up. What is put together
/// for a column serves every output pixel whose window has that column, and where windows of bytes are three rows high
/// or less, those of the next output row, too: their weights are shifted by a byte.
///
/// A call computes some output pixels side by side, of one output row or two, for all channels, two vectors of 32-bit
/// lanes at a time where elements can be permuted across whole registers, one else.
package final class DotWindowKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    /// Bytes or BF16.
    package var kind: ProductKind
    /// For each output pixel the window columns inside the input; the others hold `padValue`.
    package var inside: [Range<Int>]
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
    package var padValue: Int
    /// Bytes from a row of the input to the next, and how many rows the next windows are further down.
    package var rowBytes: Int
    package var rowsAhead: Int
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    /// The element types of the operands and of the result.
    package var operandTypes: [DataType]
    package var resultType: DataType
    /// Whether elements can be permuted across a whole register.
    package var permutes: Bool
    package var isa: ISA

    /// Output pixels of a row.
    var pixels: Int { inside.count }

    /// Lanes that a window column takes.
    var rowGroups: Int { (kernelHeight + kind.interleave - 1) / kind.interleave }

    /// Input rows that are read.
    package var rowCount: Int { kernelHeight + outputRows - 1 }
  }

  /// Words of the argument block, which a call changes where it goes on; the addresses of the epilogue's operands follow
  /// those of the window's rows.
  package enum Argument {
    package static let output = 0
    package static let weights = 1
    /// How many times as many pixels, one behind the other.
    package static let repeats = 2
    package static let rows = 3
  }

  /// Window rows that there are registers for.
  package static let mostRows = 7
  /// Registers for elements on their way into lanes.
  static let underWay = 3
  /// Registers for the orders in which elements of rows go into lanes.
  static func orderCount(_ kind: ProductKind) -> Int { kind == .bfloat16 ? 2 : 1 }

  /// The most output pixels of a row that there are registers for, with weights kept in them if they can be.
  static func mostPixels(
    _ kind: ProductKind, columns: Int, outputRows: Int, permutes: Bool, isa: ISA
  ) -> Int {
    guard isa == .avx512 else { return 6 }
    let vectors = permutes ? 2 : 1
    let free = isa.registerCount - (permutes ? orderCount(kind) : 0) - underWay
    let besides = (free - columns * vectors * outputRows) / outputRows
    return min(14, besides >= 8 ? besides : free) / vectors
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    memory = try ExecutableMemory(DotWindowGenerator(shape).generate(), name: "dot window")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

private struct DotWindowGenerator {
  let shape: DotWindowKernel.Shape
  let a = Assembler()
  let isa: ISA
  let lanes: Int
  let tail: TailMask
  /// The orders in which elements of two rows go into lanes.
  let orders: [Vec]
  /// Registers for sums, weights and what is under way.
  let registers: [Vec]

  private let rowRegisters: [R64] = [.rax, .rdx, .rsi, .r8, .r9, .r10, .r11]
  private let operandRegisters: [R64] = [.r12, .r13, .r14, .r15]
  private let saved: [R64] = [.rbx, .rbp, .r12, .r13, .r14, .r15]

  init(_ shape: DotWindowKernel.Shape) {
    self.shape = shape
    isa = shape.isa
    lanes = isa.lanes
    var all = (0..<shape.isa.registerCount).map { Vec($0, shape.isa.width) }
    if shape.isa == .avx512 {
      tail = .mask(Mask(7))
    } else {
      tail = .lanes(all.removeLast(), count: shape.channels % shape.isa.lanes)
    }
    orders = (0..<(shape.permutes ? DotWindowKernel.orderCount(shape.kind) : 0)).map { _ in all.removeLast() }
    registers = all
  }

  private var rows: [R64] { Array(rowRegisters.prefix(shape.rowCount)) }
  private var elementBytes: Int { shape.kind.elementBytes }
  /// Vectors of channels computed at once.
  private var vectorsAtOnce: Int { shape.permutes ? 2 : 1 }
  /// Vectors of channels in a pass of the loop: a cache line of the input, of bytes on AVX2 half of one.
  private var vectorsInPass: Int { shape.kind == .int8 ? 4 : 2 }

  func generate() throws(ApusError) -> [UInt8] {
    guard shape.operands.count <= operandRegisters.count,
      shape.epilogue.inputCount <= shape.operands.count + 1, !shape.permutes || isa == .avx512,
      shape.kernelHeight <= DotWindowKernel.mostRows,
      shape.outputRows == 1 || (shape.outputRows == 2 && shape.kind == .int8 && shape.rowCount <= 4)
    else {
      throw ApusError(
        .notYetSupported, "a window of \(shape.kernelHeight) rows, \(shape.operands.count) operands")
    }
    for register in saved { a.push(register) }
    loadOrders()
    let pixels = a.here()
    a.mov(.rcx, argument(DotWindowKernel.Argument.output))
    a.mov(.rbx, argument(DotWindowKernel.Argument.weights))
    for (index, row) in rows.enumerated() {
      a.mov(row, argument(DotWindowKernel.Argument.rows + index))
    }
    for index in shape.operands.indices {
      a.mov(operandRegisters[index], argument(DotWindowKernel.Argument.rows + rows.count + index))
    }
    try overChannels()
    goOn(to: pixels)
    for register in saved.reversed() { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }

  /// The code behind all channels: goes on with the pixels behind, or not.
  private func goOn(to pixels: Label) {
    func move(_ index: Int, by bytes: Int) {
      a.mov(.rbx, argument(index))
      a.add(.rbx, bytes)
      a.mov(argument(index), .rbx)
    }
    move(DotWindowKernel.Argument.output, by: shape.pixels * shape.resultPitch * ElementAccess.byteCount(shape.resultType))
    for index in rows.indices {
      move(DotWindowKernel.Argument.rows + index, by: shape.pixels * shape.stride * shape.channels * elementBytes)
    }
    for (index, kind) in shape.operands.enumerated() where kind == .full {
      move(
        DotWindowKernel.Argument.rows + rows.count + index,
        by: shape.pixels * shape.channels * ElementAccess.byteCount(shape.operandTypes[index]))
    }
    a.mov(.rbx, argument(DotWindowKernel.Argument.repeats))
    a.dec(.rbx)
    a.mov(argument(DotWindowKernel.Argument.repeats), .rbx)
    a.j(.notEqual, pixels)
  }

  private func overChannels() throws(ApusError) {
    let whole = shape.channels / lanes
    if whole >= vectorsInPass {
      a.mov(.rbp, whole / vectorsInPass)
      let loop = a.here()
      for vector in stride(from: 0, to: vectorsInPass, by: vectorsAtOnce) { try block(vector, vectorsAtOnce) }
      advance(vectorsInPass)
      a.dec(.rbp)
      a.j(.notEqual, loop)
    }
    let rest = whole % vectorsInPass
    for vector in stride(from: 0, to: rest, by: vectorsAtOnce) {
      try block(vector, min(vectorsAtOnce, rest - vector))
    }
    if shape.channels % lanes != 0 {
      a.prepareTail(tail, count: shape.channels % lanes, scratch: .rbp)
      try block(rest, 1, masked: true)
    }
  }

  private func advance(_ vectors: Int) {
    for row in rows { a.add(row, vectors * lanes * elementBytes) }
    a.add(.rbx, vectors * shape.rowGroups * isa.width.bytes)
    a.add(.rcx, vectors * lanes * ElementAccess.byteCount(shape.resultType))
    for (index, kind) in shape.operands.enumerated() where kind != .scalar {
      a.add(
        operandRegisters[index], vectors * lanes * ElementAccess.byteCount(shape.operandTypes[index]))
    }
  }

  /// Where the weights of a window column are for a vector of channels.
  private func weights(_ column: Int, _ group: Int, _ vector: Int) -> Address {
    let panels = (shape.channels + lanes - 1) / lanes
    return Address(.rbx, ((column * panels + vector) * shape.rowGroups + group) * isa.width.bytes)
  }

  /// One or two vectors of channels, from `first` on, of all pixels.
  ///
  /// Rows that share lanes are done with before the next ones: a sum waits for its last product, and so there are as
  /// many others in between as there can be.
  private func block(_ first: Int, _ vectors: Int, masked: Bool = false) throws(ApusError) {
    let sums = Array(registers.prefix(shape.pixels * shape.outputRows * vectors))
    for sum in sums { a.vxorps(sum, sum, sum) }
    func sum(_ row: Int, _ pixel: Int, _ vector: Int) -> Vec {
      sums[(row * shape.pixels + pixel) * vectors + vector]
    }
    let columns = inputColumns()
    for group in 0..<shape.rowGroups {
      var spare = Array(registers.dropFirst(sums.count))
      let weightCount = shape.kernelWidth * vectors
      let keepsWeights = spare.count >= weightCount * shape.outputRows + DotWindowKernel.underWay
      guard keepsWeights || (shape.outputRows == 1 && spare.count >= DotWindowKernel.underWay) else {
        throw ApusError(.notYetSupported, "a window of \(shape.pixels) pixels does not fit")
      }
      var kept = Array(spare.prefix(keepsWeights ? weightCount * shape.outputRows : 0))
      spare.removeFirst(kept.count)
      for (index, register) in kept.prefix(weightCount).enumerated() {
        a.vmovups(register, weights(index / vectors, group, first + index % vectors))
      }
      // The second row's windows start a row, a byte of a lane, later.
      let later = Array(kept.dropFirst(weightCount))
      kept.removeLast(later.count)
      for (register, weights) in zip(later, kept) { a.vpslld(register, weights, 8) }
      func multiply(_ pixel: Int, _ data: Vec, _ column: Int, _ vector: Int) {
        guard keepsWeights else {
          return multiplyAdd(sum(0, pixel, vector), data, weights(column, group, first + vector))
        }
        let index = column * vectors + vector
        multiplyAdd(sum(0, pixel, vector), data, kept[index])
        if shape.outputRows == 2 { multiplyAdd(sum(1, pixel, vector), data, later[index]) }
      }
      for (place, uses) in columns {
        let offset = (place * shape.channels + first * lanes) * elementBytes
        if group == shape.rowGroups - 1, first * lanes * elementBytes % 64 == 0 { prefetch(offset) }
        let data = gather(offset, group, vectors, &spare, masked: masked)
        for (pixel, column) in uses {
          for vector in 0..<vectors { multiply(pixel, data[vector], column, vector) }
        }
      }
      guard shape.padValue != 0, shape.inside.contains(where: { $0.count < shape.kernelWidth }) else { continue }
      let outside = spare[0]
      a.vbroadcastss(outside, a.constant(words: [UInt32(truncatingIfNeeded: shape.padValue & 255) * 0x0101_0101]))
      for pixel in 0..<shape.pixels {
        for column in 0..<shape.kernelWidth where !shape.inside[pixel].contains(column) {
          for vector in 0..<vectors { multiply(pixel, outside, column, vector) }
        }
      }
    }
    try store(sums, first, vectors, free: registers.filter { !sums.contains($0) }, masked: masked)
  }

  private func multiplyAdd(_ sum: Vec, _ data: Vec, _ weights: some VectorOperand) {
    if shape.kind == .bfloat16 { return a.vdpbf16ps(sum, data, weights) }
    if isa == .avx512 { a.vpdpbusd(sum, data, weights) } else { a.vexVpdpbusd(sum, data, weights) }
  }

  /// Input columns from the left, with the pixels and window columns that use them.
  private func inputColumns() -> [(place: Int, uses: [(pixel: Int, column: Int)])] {
    var uses: [Int: [(pixel: Int, column: Int)]] = [:]
    for pixel in 0..<shape.pixels {
      for column in shape.inside[pixel] {
        uses[pixel * shape.stride + column * shape.dilation, default: []].append((pixel, column))
      }
    }
    return uses.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }

  /// Fetches what the next row of windows reads first: the hardware does not follow several rows walked
  /// in short pieces.
  private func prefetch(_ offset: Int) {
    for row in 1...shape.rowsAhead { a.prefetcht0(Address(rows[rows.count - 1], offset + row * shape.rowBytes)) }
  }

  // MARK: Rows side by side

  /// For bytes one order, of two rows of 32 channels each, with which unpacking words then gives channels in their order;
  /// for BF16 those of the first and the second half of two rows of 32 channels.
  private func loadOrders() {
    for (half, register) in orders.enumerated() {
      let words: [UInt32]
      if shape.kind == .bfloat16 {
        words = (0..<16).map { ($0 + UInt32(16 * half)) * 0x0001_0001 + 0x0020_0000 }
      } else {
        // Two channels in each word of the order: those of a lane of 128 bits are four, and the four 16 further on.
        words = (0..<16).map { index in
          let channel = UInt32(index / 4 * 4 + index % 4 / 2 * 16 + index % 2 * 2)
          return (channel * 0x0101 + 0x4000) + (channel * 0x0101 + 0x4101) << 16
        }
      }
      a.vmovups(register, a.constant(words: words))
    }
  }

  /// Puts the elements of the rows of a group side by side: a register for each vector of channels.
  private func gather(_ offset: Int, _ group: Int, _ vectors: Int, _ spare: inout [Vec], masked: Bool) -> [Vec] {
    let most = shape.kind.interleave
    let places = rows[group * most..<min(rows.count, group * most + most)].map { Address($0, offset) }
    func next() -> Vec {
      spare.append(spare.removeFirst())
      return spare[spare.count - 1]
    }
    if !shape.permutes || masked || places.count == 1 {
      return (0..<vectors).map { vector in
        let data = next()
        shift(places.map { $0.offset(vector * lanes * elementBytes) }, into: data, spare[0], masked: masked)
        return data
      }
    }
    let (first, second, third) = (next(), next(), next())
    if shape.kind == .bfloat16 {
      let width: VectorWidth = vectors == 2 ? .zmm : .ymm
      a.vmovups(first.at(width), places[0])
      a.vmovups(second.at(width), places[1])
      if vectors == 2 { a.vmovups(third, first) }
      a.vpermt2w(first, orders[0], second)
      if vectors == 2 { a.vpermt2w(third, orders[1], second) }
      return [first, third]
    }
    let width: VectorWidth = vectors == 2 ? .ymm : .xmm
    pair(places[0], places[1], width, into: first, third)
    if places.count > 2 {
      pair(places[2], places.count > 3 ? places[3] : nil, width, into: second, third)
    } else {
      a.vxorps(second, second, second)
    }
    a.vpunpcklwd(third, first, second)
    if vectors == 2 { a.vpunpckhwd(first, first, second) }
    return [third, first]
  }

  /// The bytes of two rows of channels, or of one beside zeros, in an order for unpacking words.
  private func pair(_ place: Address, _ other: Address?, _ width: VectorWidth, into target: Vec, _ scratch: Vec) {
    a.vmovups(target.at(width), place)
    if let other { a.vmovups(scratch.at(width), other) } else { a.vxorps(scratch, scratch, scratch) }
    a.vpermt2b(target, orders[0], scratch)
  }

  /// The same for one vector of channels, by shifting each row to its place.
  private func shift(_ places: [Address], into data: Vec, _ scratch: Vec, masked: Bool) {
    for (index, place) in places.enumerated() {
      let lane = index == 0 ? data : scratch
      if shape.kind == .bfloat16 {
        a.vpmovzxwd(lane, place, mask: masked ? Mask(7) : nil)
      } else {
        a.loadElements(lane, place, .uint8, masked ? tail : nil)
      }
      if index > 0 {
        a.vpslld(lane, lane, UInt8(8 * elementBytes * index))
        a.vorps(data, data, lane)
      }
    }
  }

  // MARK: Results

  /// Applies the epilogue to the vectors of channels of all pixels and stores them.
  private func store(_ sums: [Vec], _ first: Int, _ vectors: Int, free: [Vec], masked: Bool) throws(ApusError) {
    let tail: TailMask? = masked ? self.tail : nil
    let types = [shape.kind.sumType] + shape.operandTypes
    // Operands that are the same for all pixels wait in registers, if there are enough.
    let needed = try ExpressionEmitter.registersNeeded(
      shape.epilogue, isa: isa, types: types, result: shape.resultType)
    let inner = shape.operands.indices.filter { shape.operands[$0] != .full }
    var pool = free
    var held: [[Int: Vec]] = Array(repeating: [:], count: vectors)
    if needed + shape.operands.count * vectors < free.count {
      for vector in 0..<vectors {
        for index in inner {
          let register = pool.removeFirst()
          held[vector][index] = register
          if shape.operands[index] == .scalar {
            a.vbroadcastss(register, Address(operandRegisters[index]))
          } else {
            a.loadElements(register, place(index, first + vector, 0), shape.operandTypes[index], tail)
          }
        }
      }
    }
    let pairs = vectors == 2 && ElementAccess.pairs(shape.resultType, isa)
    for start in stride(from: 0, to: sums.count, by: vectors) {
      let (row, pixel) = (start / vectors).quotientAndRemainder(dividingBy: shape.pixels)
      let number = row * shape.outputWidth + pixel
      let element = number * shape.resultPitch + first * lanes
      let target = Address(.rcx, element * ElementAccess.byteCount(shape.resultType))
      var results: [Vec] = []
      for vector in 0..<vectors {
        let sum = sums[start + vector]
        let emitter = ExpressionEmitter(a, isa: isa, free: pool, tail: tail, types: types) { input in
          if input == 0 { return .owned(sum) }
          if let register = held[vector][input - 1] { return .register(register) }
          if shape.operands[input - 1] == .scalar { return .element(Address(operandRegisters[input - 1])) }
          let place = place(input - 1, first + vector, number)
          return masked ? .tail(place) : .memory(place)
        }
        let value = try emitter.emit(
          shape.epilogue, as: shape.resultType, narrowing: isa == .avx512 ? .saturatingUnsigned : .truncating)
        pool = (pool + [sum]).filter { $0 != value }
        results.append(value)
        let own = target.offset(vector * lanes * ElementAccess.byteCount(shape.resultType))
        if emitter.isUnsigned {
          a.vpmovusdb(own, value, mask: masked ? Mask(7) : nil)
        } else if !pairs {
          a.storeElements(own, value, shape.resultType, tail)
        }
      }
      if pairs { a.storeElements(target, results[0], results[1]) }
      pool += results
    }
  }

  /// Where a vector of an operand lies for a pixel.
  private func place(_ index: Int, _ block: Int, _ pixel: Int) -> Address {
    let bytes = ElementAccess.byteCount(shape.operandTypes[index])
    let skipped = shape.operands[index] == .full ? pixel * shape.channels : 0
    return Address(operandRegisters[index], (skipped + block * lanes) * bytes)
  }
}
