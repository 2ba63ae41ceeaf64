// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Writes the code of a `DotWindowKernel`.
struct DotWindowGenerator {
  let shape: DotWindowKernel.Shape
  let a = Assembler()
  let isa: ISA
  let lanes: Int
  let tail: TailMask
  /// The orders in which elements of two rows go into lanes.
  let orders: [Vec]
  /// Registers for sums, weights and what is under way.
  let registers: [Vec]
  /// Where products wait to be added, if they do, and weights that are not kept in registers are widened.
  private let products: Vec?

  private let rowRegisters: [R64] = [.rax, .rdx, .rsi, .r8, .r9, .r10, .r11]
  let operandRegisters: [R64] = [.r12, .r13, .r14, .r15]
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
    products = shape.kind.widens ? all.removeLast() : nil
    registers = all
  }

  var rows: [R64] { Array(rowRegisters.prefix(shape.rowCount)) }
  /// Bytes of an element of the input.
  var elementBytes: Int { shape.kind.storedBytes }
  /// Bytes of a vector of weights.
  private var weightBytes: Int { lanes * shape.kind.columnBytes }
  /// Vectors of channels computed at once.
  private var vectorsAtOnce: Int { shape.permutes ? 2 : 1 }
  /// Vectors of channels in a pass of the loop: a cache line of the input, of bytes on AVX2 half of one.
  private var vectorsInPass: Int { shape.kind.isOfBytes && !shape.slides ? 4 : 2 }

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
    a.add(.rbx, vectors * shape.rowGroups * weightBytes)
    a.add(.rcx, vectors * lanes * ElementAccess.byteCount(shape.resultType))
    for (index, kind) in shape.operands.enumerated() where kind != .scalar {
      a.add(
        operandRegisters[index], vectors * lanes * ElementAccess.byteCount(shape.operandTypes[index]))
    }
  }

  /// Where the weights of a window column are for a vector of channels.
  func weights(_ column: Int, _ group: Int, _ vector: Int) -> Address {
    let panels = (shape.channels + lanes - 1) / lanes
    return Address(.rbx, ((column * panels + vector) * shape.rowGroups + group) * weightBytes)
  }

  /// Vectors of channels of all pixels that are summed up together.
  private struct Block {
    /// The first vector, one or two.
    var first: Int
    var vectors: Int
    var isMasked = false
    /// By output row, pixel and vector.
    var sums: [Vec]
    /// What is left besides them.
    var free: [Vec]
  }

  /// One or two vectors of channels, from `first` on, of all pixels.
  ///
  /// Rows that share lanes are done with before the next ones: a sum waits for its last product, and so there are as
  /// many others in between as there can be.
  private func block(_ first: Int, _ vectors: Int, masked: Bool = false) throws(ApusError) {
    if shape.slides { return try slide(first, vectors, masked: masked) }
    let count = shape.pixels * shape.outputRows * vectors
    let block = Block(
      first: first, vectors: vectors, isMasked: masked, sums: Array(registers.prefix(count)),
      free: Array(registers.dropFirst(count)))
    for sum in block.sums { a.vxorps(sum, sum, sum) }
    for group in 0..<shape.rowGroups { try addProducts(of: group, block) }
    try store(block.sums, first, vectors, free: block.free, masked: masked)
  }

  /// The products of the rows that share lanes.
  private func addProducts(of group: Int, _ block: Block) throws(ApusError) {
    var spare = block.free
    let weights = try keepWeights(of: group, block, &spare)
    func multiply(_ pixel: Int, _ data: Vec, _ column: Int, _ vector: Int) {
      let sum = pixel * block.vectors + vector
      guard let weights else {
        return multiplyAdd(block.sums[sum], data, self.weights(column, group, block.first + vector))
      }
      let index = column * block.vectors + vector
      for row in 0..<shape.outputRows {
        multiplyAdd(block.sums[row * shape.pixels * block.vectors + sum], data, weights[row][index])
      }
    }
    for (place, uses) in inputColumns() {
      let bytes = block.first * lanes * elementBytes
      let offset = place * shape.channels * elementBytes + bytes
      if group == shape.rowGroups - 1, bytes % 64 == 0 { prefetch(offset) }
      let data = gather(offset, group, block.vectors, &spare, masked: block.isMasked)
      for (pixel, column) in uses {
        for vector in 0..<block.vectors { multiply(pixel, data[vector], column, vector) }
      }
    }
    guard shape.padValue != 0, shape.inside.contains(where: { $0.count < shape.kernelWidth }) else { return }
    let outside = spare[0]
    let everywhere: UInt32 = shape.kind.widens ? 0x0001_0001 : 0x0101_0101
    a.vbroadcastss(outside, a.constant(words: [UInt32(truncatingIfNeeded: shape.padValue & 255) * everywhere]))
    for pixel in 0..<shape.pixels {
      for column in 0..<shape.kernelWidth where !shape.inside[pixel].contains(column) {
        for vector in 0..<block.vectors { multiply(pixel, outside, column, vector) }
      }
    }
  }

  /// Loads the weights of a group into registers, for each output row by column and vector; nil where there are too few
  /// and one row of results can do with weights in memory. The second row's windows start a row, a byte of a lane, later.
  private func keepWeights(of group: Int, _ block: Block, _ spare: inout [Vec]) throws(ApusError) -> [[Vec]]? {
    let count = shape.kernelWidth * block.vectors
    guard spare.count >= count * shape.outputRows + DotWindowKernel.underWay else {
      if shape.outputRows == 1, spare.count >= DotWindowKernel.underWay { return nil }
      throw ApusError(.notYetSupported, "a window of \(shape.pixels) pixels does not fit")
    }
    let kept = Array(spare.prefix(count))
    spare.removeFirst(count)
    for (index, register) in kept.enumerated() {
      let place = weights(index / block.vectors, group, block.first + index % block.vectors)
      if shape.kind.widens { a.vpmovsxbw(register, place) } else { a.vmovups(register, place) }
    }
    guard shape.outputRows == 2 else { return [kept] }
    let later = Array(spare.prefix(count))
    spare.removeFirst(count)
    for (register, weights) in zip(later, kept) { a.vpslld(register, weights, 8) }
    return [kept, later]
  }

  func multiplyAdd(_ sum: Vec, _ data: Vec, _ weights: some VectorOperand) {
    if shape.kind == .bfloat16 { return a.vdpbf16ps(sum, data, weights) }
    if let products { return multiplyAddApart(sum, data, weights, products) }
    if isa == .avx512 { a.vpdpbusd(sum, data, weights) } else { a.vexVpdpbusd(sum, data, weights) }
  }

  private func multiplyAddApart(_ sum: Vec, _ data: Vec, _ weights: some VectorOperand, _ products: Vec) {
    if let weights = weights as? Vec {
      a.vpmaddwd(products, data, weights)
    } else {
      a.vpmovsxbw(products, weights)
      a.vpmaddwd(products, products, data)
    }
    a.vpaddd(sum, sum, products)
  }

  /// Input columns from the left, with the pixels and window columns that use them.
  func inputColumns() -> [(place: Int, uses: [(pixel: Int, column: Int)])] {
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
  func place(_ index: Int, _ block: Int, _ pixel: Int) -> Address {
    let bytes = ElementAccess.byteCount(shape.operandTypes[index])
    let skipped = shape.operands[index] == .full ? pixel * shape.channels : 0
    return Address(operandRegisters[index], (skipped + block * lanes) * bytes)
  }
}
