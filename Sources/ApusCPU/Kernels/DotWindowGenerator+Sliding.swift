// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Windows that slide along a row: pixels are finished one after the other.
///
/// Where all pixels are finished together, the multipliers wait while results are rounded, and the other way round: the
/// core sees too few instructions ahead to do both. Here the column that the last products of a pixel come from is
/// followed by one whose products stand between the instructions that finish it; and between them is gathered what the
/// column after that needs. Every column is gathered once for the whole row.
extension DotWindowGenerator {
  /// What is under way along a row.
  private struct Slide {
    /// The first vector of channels, and how many.
    let first: Int
    let vectors: Int
    let isMasked: Bool
    /// By window column and vector.
    var weights: [Vec] = []
    /// Where columns are gathered by turns, and the room beside them for the second output row.
    var sets: [[Vec]] = []
    var extra: Vec?
    /// For the epilogue.
    var temporaries: [Vec] = []
    /// What is left, and the sums of each pixel by output row and vector.
    var free: [Vec] = []
    var sums: [Int: [Vec]] = [:]
    /// What has to be added to packed results.
    var zeroPoint = 0
  }

  /// One or two vectors of channels, from `first` on, of all pixels.
  ///
  /// - Throws: `not-yet-supported` where the registers are too few, or a lane does not hold a window.
  func slide(_ first: Int, _ vectors: Int, masked: Bool) throws(ApusError) {
    guard shape.permutes, shape.kind == .int8, shape.rowCount <= shape.kind.interleave,
      shape.inside.allSatisfy({ !$0.isEmpty })
    else { throw ApusError(.notYetSupported, "these windows do not slide") }
    var slide = Slide(first: first, vectors: vectors, isMasked: masked)
    try allot(&slide)
    for (index, register) in slide.weights.enumerated() {
      a.vmovups(register, weights(index / vectors, 0, first + index % vectors))
    }
    let columns = inputColumns()
    var data = gather(columns[0].place, 0, slide)
    var finished: [Int] = []
    for (number, column) in columns.enumerated() {
      for use in column.uses where slide.sums[use.pixel] == nil { try start(use.pixel, &slide) }
      let products = products(column.uses, data, slide)
      var besides: [Step] = []
      if number + 1 < columns.count {
        besides.append(.gather(place: columns[number + 1].place, set: (number + 1) % 2))
      }
      besides += finished.flatMap { steps(finishing: $0, vectors) }
      var (written, next) = (0, data)
      for (index, product) in products.enumerated() {
        multiplyAdd(product.sum, product.data, product.weights)
        let end = besides.count * (index + 1) / products.count
        for step in besides[written..<end] { if let found = try write(step, &slide) { next = found } }
        written = end
      }
      data = next
      for pixel in finished { slide.free += slide.sums.removeValue(forKey: pixel) ?? [] }
      finished = column.uses.filter { $0.column == shape.inside[$0.pixel].upperBound - 1 }.map(\.pixel)
    }
    for step in finished.flatMap({ steps(finishing: $0, vectors) }) { _ = try write(step, &slide) }
  }

  /// What stands between products.
  private enum Step {
    case gather(place: Int, set: Int)
    case finish(pixel: Int, sum: Int)
    case store(pixel: Int)
  }

  private func steps(finishing pixel: Int, _ vectors: Int) -> [Step] {
    (0..<shape.outputRows * vectors).map { .finish(pixel: pixel, sum: $0) } + [.store(pixel: pixel)]
  }

  /// Writes a step; returns the data that it gathers.
  private func write(_ step: Step, _ slide: inout Slide) throws(ApusError) -> [Vec]? {
    switch step {
    case .gather(let place, let set): return gather(place, set, slide)
    case .finish(let pixel, let sum): try finish(pixel, sum, &slide)
    case .store(let pixel): store(pixel, slide)
    }
    return nil
  }

  // MARK: Registers

  private func allot(_ slide: inout Slide) throws(ApusError) {
    var free = registers
    func take(_ count: Int) throws(ApusError) -> [Vec] {
      guard free.count >= count else { throw ApusError(.notYetSupported, "windows that slide need more registers") }
      defer { free.removeFirst(count) }
      return Array(free.prefix(count))
    }
    let vectors = slide.vectors
    slide.weights = try take(shape.kernelWidth * vectors)
    slide.sets = [try take(DotWindowKernel.underWay), try take(DotWindowKernel.underWay)]
    if shape.outputRows == 2, vectors == 2 { slide.extra = try take(1)[0] }
    slide.temporaries = try take(max(1, try epilogueRegisters(slide)))
    slide.free = free
  }

  private var packing: ExpressionEmitter.Narrowing {
    isBytes ? (shape.stepsFit ? .packingInRange : .packing) : .truncating
  }
  private var isBytes: Bool { ElementAccess.byteCount(shape.resultType) == 1 }
  private var inputTypes: [DataType] { [shape.kind.sumType] + shape.operandTypes }

  private func epilogueRegisters(_ slide: Slide) throws(ApusError) -> Int {
    try ExpressionEmitter.registersNeeded(
      shape.epilogue, isa: isa, types: inputTypes, result: shape.resultType, narrowing: packing
    ) { input in
      input == 0 ? .owned(Vec(0, isa.width)) : operand(input - 1, slide.first, 0, masked: slide.isMasked)
    }
  }

  /// Zeros for the sums of a pixel, and the products of what lies outside of the image.
  private func start(_ pixel: Int, _ slide: inout Slide) throws(ApusError) {
    let count = shape.outputRows * slide.vectors
    guard slide.free.count >= count else { throw ApusError(.notYetSupported, "windows that slide need more registers") }
    let sums = Array(slide.free.prefix(count))
    slide.free.removeFirst(count)
    slide.sums[pixel] = sums
    for sum in sums { a.vxorps(sum, sum, sum) }
    let missing = (0..<shape.kernelWidth).filter { !shape.inside[pixel].contains($0) }
    guard shape.padValue != 0, !missing.isEmpty else { return }
    let outside = slide.temporaries[0]
    a.vbroadcastss(outside, a.constant(words: [UInt32(truncatingIfNeeded: shape.padValue & 255) * 0x0101_0101]))
    for column in missing {
      for (index, sum) in sums.enumerated() {
        multiplyAdd(sum, outside, slide.weights[column * slide.vectors + index % slide.vectors])
      }
    }
  }

  // MARK: Products

  /// Gathers a column into one of the sets: a register for each vector, the second of the set left alone.
  private func gather(_ place: Int, _ set: Int, _ slide: Slide) -> [Vec] {
    let offset = (place * shape.channels + slide.first * lanes) * elementBytes
    var spare = slide.sets[set]
    return gather(offset, 0, slide.vectors, &spare, masked: slide.isMasked)
  }

  /// The products of a column. Those of the second output row, whose windows begin a row further down, take the data
  /// a byte further on.
  private func products(_ uses: [(pixel: Int, column: Int)], _ data: [Vec], _ slide: Slide) -> [(
    sum: Vec, data: Vec, weights: Vec
  )] {
    var rows = [data]
    if shape.outputRows == 2 {
      let set = slide.sets.first { $0.contains(data[0]) } ?? []
      let room = [set[1]] + (slide.extra.map { [$0] } ?? [])
      for (register, column) in zip(room, data) { a.vpsrld(register, column, 8) }
      rows.append(room)
    }
    return uses.flatMap { use in
      (0..<slide.vectors).flatMap { vector in
        rows.enumerated().map { row, data in
          (
            slide.sums[use.pixel]![row * slide.vectors + vector], data[vector],
            slide.weights[use.column * slide.vectors + vector]
          )
        }
      }
    }
  }

  // MARK: Results

  private func operand(_ index: Int, _ vector: Int, _ number: Int, masked: Bool) -> ExpressionEmitter.Input {
    if shape.operands[index] == .scalar { return .element(Address(operandRegisters[index])) }
    let place = place(index, vector, number)
    return masked ? .tail(place) : .memory(place)
  }

  /// Rounds a sum, or whatever its epilogue does, where it is.
  private func finish(_ pixel: Int, _ index: Int, _ slide: inout Slide) throws(ApusError) {
    let (row, vector) = index.quotientAndRemainder(dividingBy: slide.vectors)
    let sum = slide.sums[pixel]![index]
    let number = row * shape.outputWidth + pixel
    let emitter = ExpressionEmitter(
      a, isa: isa, free: slide.temporaries, tail: slide.isMasked ? tail : nil, types: inputTypes
    ) { [slide] input in
      input == 0 ? .owned(sum) : operand(input - 1, slide.first + vector, number, masked: slide.isMasked)
    }
    let value = try emitter.emit(shape.epilogue, as: shape.resultType, narrowing: packing)
    slide.zeroPoint = emitter.zeroPointLeft
    if value != sum { a.vmovups(sum, value) }
  }

  private func store(_ pixel: Int, _ slide: Slide) {
    let bytes = ElementAccess.byteCount(shape.resultType)
    let vectors = slide.vectors
    let sums = slide.sums[pixel]!
    func target(_ row: Int, _ vector: Int = 0) -> Address {
      let number = row * shape.outputWidth + pixel
      return Address(.rcx, (number * shape.resultPitch + (slide.first + vector) * lanes) * bytes)
    }
    guard isBytes else {
      for (index, sum) in sums.enumerated() {
        a.storeElements(
          target(index / vectors, index % vectors), sum, shape.resultType, slide.isMasked ? tail : nil)
      }
      return
    }
    // The rows are packed side by side.
    let rows = (0..<shape.outputRows).map { (sums[$0 * vectors], sums[$0 * vectors + vectors - 1]) }
    let packed = a.packBytes(
      rows, zeroPoint: slide.zeroPoint, as: shape.resultType, order: slide.temporaries[0])
    if vectors == 2 {
      a.vmovups(target(0), packed.at(.ymm))
      if rows.count == 2 { a.vextractf64x4(target(1), packed, 1) }
      return
    }
    for row in rows.indices {
      // With one vector, the bytes of a row are the first and the third of four parts of 16.
      if row == 1 { a.vextractf64x4(packed.at(.ymm), packed, 1) }
      a.vmovdqu8(target(row), packed.at(.xmm), mask: slide.isMasked ? Mask(7) : nil)
    }
  }
}
