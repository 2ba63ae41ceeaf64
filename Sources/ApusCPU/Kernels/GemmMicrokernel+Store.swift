// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// What happens to the sums of a tile behind the loop over K.
extension MicrokernelGenerator {
  private var bytesOfC: Int { ElementAccess.byteCount(shape.resultType) }

  func addressOfC(_ row: Int, _ column: Int) -> Address {
    Address(.rcx, (shape.rowsOfC[row] + column * isa.lanes) * bytesOfC)
  }

  /// The types of the epilogue's inputs: the sum, then the operands.
  private var inputTypes: [DataType] { [shape.kind.sumType] + shape.operandTypes }

  func store() throws(ApusError) {
    if let tail, !shape.masksB {
      a.prepareTail(tail, count: shape.lastColumns, scratch: .rax)
    }
    if shape.kind == .int16 {
      for register in accumulators.joined() { a.vcvtdq2ps(register, register) }
    }
    addTerms()
    if shape.resultType == shape.kind.sumType { addWhatCHolds() }
    if epilogue == .input(0) && shape.resultType == shape.kind.sumType { return storeSums() }
    let plain = a.label()
    let done = a.label()
    a.mov(.rax, .r11)
    a.and(.rax, Microkernel.finish)
    a.j(.equal, plain)
    let operandRegisters = try loadOperandAddresses()
    prepareBytes()
    if let storing = try storing(0..<rows, operandRegisters, free) {
      for piece in storing.pieces { try write(piece, of: storing) }
    } else {
      try storeThroughMemory(operandRegisters)
    }
    a.jmp(done)
    a.bind(plain)
    if shape.resultType == shape.kind.sumType { storeSums() }
    a.bind(done)
  }

  /// Adds the terms of rows and columns to the first part of the sums.
  private func addTerms() {
    guard shape.terms.perRow || shape.terms.perColumn else { return }
    let later = a.label()
    a.mov(.rax, .r11)
    a.and(.rax, Microkernel.accumulate)
    a.j(.notEqual, later)
    a.mov(.rax, argument(Microkernel.Argument.rowTerms))
    a.mov(.rdx, argument(Microkernel.Argument.columnTerms))
    for row in 0..<rows {
      for (column, register) in accumulators[row].enumerated() {
        if shape.terms.perRow { a.vpaddd(register, register, Address(.rax, 4 * row).broadcasting) }
        if shape.terms.perColumn {
          a.vpaddd(register, register, Address(.rdx, column * width.bytes))
        }
      }
    }
    a.bind(later)
  }

  /// Adds an earlier part of the sums, if the call says so.
  private func addWhatCHolds() {
    let start = a.label()
    a.mov(.rax, .r11)
    a.and(.rax, Microkernel.accumulate)
    a.j(.equal, start)
    for row in 0..<rows {
      for (column, register) in accumulators[row].enumerated() {
        a.loadTail(free[0], addressOfC(row, column), tail(column))
        if shape.kind.sumType == .int32 {
          a.vpaddd(register, register, free[0])
        } else {
          a.vaddps(register, register, free[0])
        }
      }
    }
    a.bind(start)
  }

  /// Expressions that need more registers have long code.
  private static let simpleRegisters = 3

  private func storeSums() {
    for row in 0..<rows {
      for (column, register) in accumulators[row].enumerated() {
        a.storeTail(addressOfC(row, column), register, tail(column))
      }
    }
  }

  /// Registers with the addresses of the extra operands.
  func loadOperandAddresses(
    _ registers: [R64] = [.rsi, .r8, .r9, .r10, .rdx, .rbx]
  ) throws(ApusError) -> [R64] {
    guard shape.operands.count <= registers.count,
      epilogue.inputCount <= shape.operands.count + 1
    else {
      throw ApusError(.notYetSupported, "an epilogue of \(shape.operands.count) operands")
    }
    let used = Array(registers.prefix(shape.operands.count))
    for (index, register) in used.enumerated() {
      a.mov(register, argument(Microkernel.Argument.operands + index))
    }
    return used
  }

  /// Where extra operand `index` is for vector `column` of a row of the tile.
  private func operand(_ index: Int, _ register: R64, row: Int, _ column: Int)
    -> ExpressionEmitter.Input
  {
    let bytes = ElementAccess.byteCount(shape.operandTypes[index])
    let address = Address(register)
    switch shape.operands[index] {
    case .scalar: return .element(address)
    case .perColumn:
      let place = address.offset(column * isa.lanes * bytes)
      return tail(column) == nil ? .memory(place) : .tail(place)
    case .full:
      let place = address.offset((shape.rowsOfOperands[row] + column * isa.lanes) * bytes)
      return tail(column) == nil ? .memory(place) : .tail(place)
    }
  }

  /// The code that applies the epilogue to some rows where their sums are: pieces to be written in order, with
  /// anything that leaves its registers alone between them.
  final class Storing {
    enum Piece {
      case row(Int)
      case load(operand: Int, column: Int, into: Vec)
      case finish(row: Int, column: Int)
      case storeBytes(row: Int, columns: Range<Int>)
    }

    private(set) var pieces: [Piece]
    let addresses: [R64]
    /// Registers that hold operands of a column.
    let held: [Int: Vec]
    var free: [Vec]
    /// Results on their way to being stored.
    var results: [Int: [Vec]] = [:]
    var zeroPoint = 0

    init(_ pieces: [Piece], _ addresses: [R64], free: [Vec], held: [Int: Vec] = [:]) {
      self.pieces = pieces
      self.addresses = addresses
      self.free = free
      self.held = held
    }
  }

  /// The pieces for some rows, with these registers besides. Nil when there are too few, or too much code to
  /// repeat for each accumulator.
  func storing(_ rows: Range<Int>, _ addresses: [R64], _ free: [Vec]) throws(ApusError) -> Storing? {
    guard try runsInPlace(in: free.count) else { return nil }
    if packsBytes, let storing = try storingByColumns(rows, addresses, free) { return storing }
    return Storing(rows.map { .row($0) }, addresses, free: free)
  }

  /// Whether the epilogue runs where the sums are, with so many registers besides.
  func runsInPlace(in free: Int) throws(ApusError) -> Bool {
    try Self.runsInPlace(
      epilogue, shape.operands, ProductTypes(shape.kind, result: shape.resultType, operands: shape.operandTypes),
      packing: packsBytes ? packing : .truncating, isTail: tail != nil, isa: isa, in: free)
  }

  /// The same for an epilogue without what the sums start from.
  ///
  /// - Parameters:
  ///   - packing: What storing its results does.
  ///   - isTail: Whether a vector of operands may be partial, so that instructions cannot read it from memory.
  static func runsInPlace(
    _ epilogue: ScalarExpr, _ operands: [EpilogueOperand], _ types: ProductTypes,
    packing: ExpressionEmitter.Narrowing, isTail: Bool, isa: ISA, in free: Int
  ) throws(ApusError) -> Bool {
    let inputTypes = [types.kind.sumType] + types.operands
    let length = try ExpressionEmitter.registersNeeded(epilogue, isa: isa, types: inputTypes, result: types.result)
    guard length <= simpleRegisters else { return false }
    let needed = try ExpressionEmitter.registersNeeded(
      epilogue, isa: isa, types: inputTypes, result: types.result, narrowing: packing
    ) { input in
      if input == 0 { return .owned(Vec(0, isa.width)) }
      let place = Address(.rax)
      return operands[input - 1] == .scalar ? .element(place) : isTail ? .tail(place) : .memory(place)
    }
    // Putting bytes in order takes one.
    return max(1, needed) <= free
  }

  func write(_ piece: Storing.Piece, of storing: Storing) throws(ApusError) {
    switch piece {
    case .row(let row):
      try storeRow(row, free: storing.free, sum: { accumulators[row][$0] }) { input, column in
        operand(input, storing.addresses[input], row: row, column)
      }
    case .load(let index, let column, let register):
      try load(index, storing.addresses[index], column, into: register)
    case .finish(let row, let column):
      try finish(row, column, storing)
    case .storeBytes(let row, let columns):
      storeBytes(
        columns.compactMap { storing.results[row]?[$0] }, zeroPoint: storing.zeroPoint, row: row,
        column: columns.lowerBound, scratch: storing.free[0])
    }
  }

  /// Puts the accumulators on the stack, which frees their registers, and goes over the tile row by row.
  private func storeThroughMemory(_ addresses: [R64]) throws(ApusError) {
    let rowBytes = shape.vectors * width.bytes
    a.sub(.rsp, rows * rowBytes)
    for row in 0..<rows {
      for (column, register) in accumulators[row].enumerated() {
        a.vmovups(Address(.rsp, row * rowBytes + column * width.bytes), register)
      }
    }
    var registers = (0..<isa.registerCount).map { Vec($0, width) }
    if case .lanes(let lanes, _) = tail { registers.removeAll { $0 == lanes } }
    let sums = registers.prefix(packsBytes ? Self.bytesTogether : pairsResults ? 2 : 1)
    registers.removeFirst(sums.count)
    a.lea(.r11, Address(.rsp))
    let load = { (column: Int) -> Vec in
      let sum = sums[column % sums.count]
      a.vmovups(sum, Address(.r11, column * width.bytes))
      return sum
    }
    func storeNext() throws(ApusError) {
      try storeRow(0, free: registers, sum: load) { input, column in
        operand(input, addresses[input], row: 0, column)
      }
    }
    func advance(to row: Int) {
      a.add(.r11, rowBytes)
      a.add(.rcx, (shape.rowsOfC[row] - shape.rowsOfC[row - 1]) * bytesOfC)
      let step = shape.rowsOfOperands[row] - shape.rowsOfOperands[row - 1]
      for (index, kind) in shape.operands.enumerated() where kind == .full {
        a.add(addresses[index], step * ElementAccess.byteCount(shape.operandTypes[index]))
      }
    }
    func isEven(_ places: [Int]) -> Bool { Set(zip(places.dropFirst(), places).map { $0 - $1 }).count <= 1 }
    if isEven(shape.rowsOfC), isEven(shape.rowsOfOperands) {
      a.mov(.rax, rows)
      let loop = a.here()
      try storeNext()
      if rows > 1 { advance(to: 1) }
      a.dec(.rax)
      a.j(.notEqual, loop)
    } else {
      for row in 0..<rows {
        if row > 0 { advance(to: row) }
        try storeNext()
      }
    }
    a.add(.rsp, rows * rowBytes)
  }

  /// Applies the epilogue to a row and stores it. `sum` gives the register with the sums of a vector of
  /// columns, which may be changed when its epilogue has been computed; `operand` where an extra operand is.
  private func storeRow(
    _ row: Int, free: [Vec], sum: (Int) -> Vec,
    operand: @escaping (_ index: Int, _ column: Int) -> ExpressionEmitter.Input
  ) throws(ApusError) {
    var zeroPoint = 0
    func result(_ column: Int, _ sum: Vec, _ free: [Vec]) throws(ApusError) -> Vec {
      let emitter = ExpressionEmitter(a, isa: isa, free: free, tail: tail, types: inputTypes) { input in
        input == 0 ? .owned(sum) : operand(input - 1, column)
      }
      let value = try emitter.emit(
        epilogue, as: shape.resultType, narrowing: packsBytes ? packing : .truncating)
      zeroPoint = emitter.zeroPointLeft
      return value
    }
    guard packsBytes else {
      var column = 0
      while column < shape.vectors {
        if pairsResults, column + 1 < shape.vectors, tail(column) == nil, tail(column + 1) == nil {
          // Each result goes where its sum was.
          let pair = [sum(column), sum(column + 1)]
          for (index, target) in pair.enumerated() {
            let value = try result(column + index, target, free)
            if value != target { a.vmovups(target, value) }
          }
          a.storeElements(addressOfC(row, column), pair[0], pair[1])
          column += 2
        } else {
          let value = try result(column, sum(column), free)
          a.storeElements(addressOfC(row, column), value, shape.resultType, tail(column))
          column += 1
        }
      }
      return
    }
    for first in stride(from: 0, to: shape.vectors, by: Self.bytesTogether) {
      let columns = first..<min(shape.vectors, first + Self.bytesTogether)
      // Each result goes where its sum was.
      var results: [Vec] = []
      for column in columns {
        let target = sum(column)
        let value = try result(column, target, free)
        if value != target { a.vmovups(target, value) }
        results.append(target)
      }
      storeBytes(results, zeroPoint: zeroPoint, row: row, column: first, scratch: free[0])
    }
  }

  // MARK: Bytes

  /// Vectors of results that make one vector of bytes.
  private static let bytesTogether = 4
  private var partOfBytes: Mask { Mask(6) }

  /// Whether vectors of results are put together before they are stored: narrowing each on its own takes
  /// two instructions, and a store of 16 bytes.
  private var packsBytes: Bool {
    shape.vectors > 1 && (shape.resultType == .uint8 || shape.resultType == .int8)
  }

  /// Whether vectors of results are stored in pairs.
  private var pairsResults: Bool { shape.vectors > 1 && ElementAccess.pairs(shape.resultType, isa) }

  private var packing: ExpressionEmitter.Narrowing { shape.stepsFit ? .packingInRange : .packing }

  /// Columns that the vectors from `first` on have together.
  private func columnCount(from first: Int) -> Int {
    let all = (shape.vectors - 1) * isa.lanes + shape.lastColumns
    return min(all - first * isa.lanes, Self.bytesTogether * isa.lanes)
  }

  /// Selects the bytes of the last group of vectors, if it is not full.
  func prepareBytes() {
    guard packsBytes, isa == .avx512 else { return }
    let count = columnCount(from: (shape.vectors - 1) / Self.bytesTogether * Self.bytesTogether)
    guard count < width.bytes else { return }
    // 63 bytes leave no bit to borrow from.
    a.mov(.rax, (1 << count) &- 1)
    a.kmovq(partOfBytes, .rax)
  }

  /// Applies the epilogue column by column, the operands of a column in registers, and then stores the rows.
  /// Nil when there are too few registers.
  private func storingByColumns(_ rows: Range<Int>, _ addresses: [R64], _ free: [Vec]) throws(ApusError) -> Storing? {
    let read = shape.operands.indices.filter { index in epilogue.contains { $0 == .input(index + 1) } }
    let inner = read.filter { shape.operands[$0] != .full }
    let needed = try ExpressionEmitter.registersNeeded(
      epilogue, isa: isa, types: inputTypes, result: shape.resultType, narrowing: packing
    ) { input in
      if input == 0 { return .owned(Vec(0, isa.width)) }
      return inner.contains(input - 1) ? .register(Vec(0, isa.width)) : .tail(Address(.rax))
    }
    guard max(1, needed) + inner.count <= free.count else { return nil }
    var pieces: [Storing.Piece] = []
    for column in 0..<shape.vectors {
      for (index, register) in zip(inner, free) {
        pieces.append(.load(operand: index, column: column, into: register))
      }
      for row in rows { pieces.append(.finish(row: row, column: column)) }
    }
    for row in rows {
      for first in stride(from: 0, to: shape.vectors, by: Self.bytesTogether) {
        let columns = first..<min(shape.vectors, first + Self.bytesTogether)
        pieces.append(.storeBytes(row: row, columns: columns))
      }
    }
    return Storing(
      pieces, addresses, free: Array(free.dropFirst(inner.count)),
      held: Dictionary(uniqueKeysWithValues: zip(inner, free)))
  }

  /// Makes the result of one accumulator, which stays in a register.
  private func finish(_ row: Int, _ column: Int, _ storing: Storing) throws(ApusError) {
    let sum = accumulators[row][column]
    let emitter = ExpressionEmitter(a, isa: isa, free: storing.free, tail: tail, types: inputTypes) {
      input in
      if input == 0 { return .owned(sum) }
      if let register = storing.held[input - 1] { return .register(register) }
      return operand(input - 1, storing.addresses[input - 1], row: row, column)
    }
    let result = try emitter.emit(epilogue, as: shape.resultType, narrowing: packing)
    storing.zeroPoint = emitter.zeroPointLeft
    storing.results[row, default: []].append(result)
    storing.free = (storing.free + [sum]).filter { $0 != result }
  }

  /// An operand that is the same for all rows.
  private func load(_ index: Int, _ address: R64, _ column: Int, into register: Vec)
    throws(ApusError)
  {
    switch operand(index, address, row: 0, column) {
    case .element(let place): a.vbroadcastss(register, place)
    case .memory(let place): a.loadElements(register, place, shape.operandTypes[index], nil)
    case .tail(let place): a.loadElements(register, place, shape.operandTypes[index], tail)
    case .register, .owned:
      throw ApusError(.internalError, "operands of an epilogue are in memory")
    }
  }

  /// Packs results into 16-bit elements, these into bytes, puts them in order and stores them. The
  /// registers are overwritten.
  private func storeBytes(
    _ results: [Vec], zeroPoint: Int, row: Int, column: Int, scratch: Vec
  ) {
    let pairs = stride(from: 0, to: results.count, by: 2).map { (results[$0], results[min($0 + 1, results.count - 1)]) }
    let bytes = a.packBytes(pairs, zeroPoint: zeroPoint, as: shape.resultType, order: scratch)
    let columns = columnCount(from: column)
    guard isa == .avx512 else {
      return a.storeBytes(addressOfC(row, column), bytes, count: columns)
    }
    switch columns {
    case width.bytes: a.vmovups(addressOfC(row, column), bytes)
    case 32: a.vmovups(addressOfC(row, column), bytes.at(.ymm))
    default: a.vmovdqu8(addressOfC(row, column), bytes, mask: partOfBytes)
    }
  }
}
