// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code that transforms one tile of pixels for all channels: `B^T d B` on the way in,
/// `A^T x A` and the epilogue on the way out.
package final class WinogradKernel: Sendable {
  /// What a tile of pixels becomes.
  struct Input: Hashable, Sendable {
    /// Results are `m` x `m`, pixels and products `m + 2` times as many.
    var m: Int
    var channels: Int
    /// Bytes from a pixel to the next.
    var pixelStep: Int
    /// The columns of the tile inside the input; the others are zeros.
    var columns: Range<Int>
    /// What stands for zero where pixels are bytes.
    var padValue = 0
    /// Bytes between the planes of the transformed tiles.
    var planeStep: Int
    /// The element type of the pixels, and of the transformed tiles.
    var inputType: DataType
    var transformedType: DataType
    var isa: ISA
  }

  /// What becomes of the products of a tile.
  struct Output: Hashable, Sendable {
    var m: Int
    var channels: Int
    /// The rows and columns of results that exist.
    var rows: Int
    var columns: Int
    var planeStep: Int
    /// Pixels in a row of results, and elements from one to the next, there and in full operands.
    var width: Int
    var pixelStride: Int
    var operandStride: Int
    /// What the epilogue gets: `int32` for sums that are whole numbers.
    var sumType: DataType
    /// What the pixels' zero point was. Unless it is 0, the last operand holds the sums of the weights, and
    /// so many of these belong to every sum.
    var padValue = 0
    var epilogue: ScalarExpr
    var operands: [EpilogueOperand]
    var operandTypes: [DataType]
    var resultType: DataType
    var isa: ISA
  }

  /// Words of the argument block of an output transform; an input transform has the transformed tile
  /// first, then the addresses of the tile's rows.
  enum Argument {
    static let transformed = 0
    static let rows = 1
    static let output = 1
    static let operands = 2
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  init(_ shape: Input) throws(ApusError) {
    memory = try ExecutableMemory(
      shape.transformedType == .int16
        ? WinogradGenerator(shape.isa, shape.channels, shape.m).generateIntegers(shape)
        : WinogradGenerator(shape.isa, shape.channels, shape.m).generate(shape),
      name: "winograd\(shape.m) input \(shape.isa.rawValue)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }

  init(_ shape: Output) throws(ApusError) {
    memory = try ExecutableMemory(
      WinogradGenerator(shape.isa, shape.channels, shape.m).generate(shape),
      name: "winograd\(shape.m) output \(shape.isa.rawValue)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

/// Writes a transform: a loop over vectors of channels, each going over the columns of its tile into
/// memory of its own, then over the rows out of it.
struct WinogradGenerator {
  let a = Assembler()
  let isa: ISA
  let width: VectorWidth
  let channels: Int
  let m: Int
  let size: Int
  let tail: TailMask
  let registers: [Vec]

  init(_ isa: ISA, _ channels: Int, _ m: Int) {
    self.isa = isa
    self.channels = channels
    self.m = m
    size = m + 2
    width = isa.width
    let width = isa.width
    var all = (0..<isa.registerCount).map { Vec($0, width) }
    tail = isa == .avx512 ? .mask(Mask(7)) : .lanes(all.removeLast(), count: channels % isa.lanes)
    registers = all
  }

  func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }

  /// Where the first side's result for row i and column j waits for the second side.
  func between(_ row: Int, _ column: Int) -> Address {
    Address(.rsp, (row * size + column) * width.bytes)
  }

  /// Where something else waits.
  private var aside: Address { between(size, 0) }

  /// Puts the program's factors into registers.
  private func load(_ factors: [Float], _ pool: inout [Vec]) -> [Float: Vec] {
    var result: [Float: Vec] = [:]
    for factor in factors {
      let register = pool.removeLast()
      a.vbroadcastss(register, a.constant(words: [factor.bitPattern]))
      result[factor] = register
    }
    return result
  }

  /// A loop over whole vectors of channels, then the channels left over. The counter is rsi.
  private func overChannels(
    advance: () -> Void, _ body: (TailMask?) throws(ApusError) -> Void
  ) throws(ApusError) {
    let whole = channels / isa.lanes
    if whole > 0 {
      a.mov(.rsi, whole)
      let loop = a.here()
      try body(nil)
      advance()
      a.dec(.rsi)
      a.j(.notEqual, loop)
    }
    if channels % isa.lanes != 0 {
      a.prepareTail(tail, count: channels % isa.lanes, scratch: .rsi)
      try body(tail)
    }
  }

  func enter(_ saved: [R64]) {
    for register in saved { a.push(register) }
    a.mov(.rbp, .rsp)
    a.sub(.rsp, (size * size + 1) * width.bytes)
    a.and(.rsp, -64)
  }

  func leave(_ saved: [R64]) throws(ApusError) -> [UInt8] {
    a.mov(.rsp, .rbp)
    for register in saved.reversed() { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  func generate(_ shape: WinogradKernel.Input) throws(ApusError) -> [UInt8] {
    let rows = Array([R64.rax, .rdx, .rcx, .r8, .r9, .r10].prefix(size))
    enter([.rbp])
    a.mov(.r11, argument(WinogradKernel.Argument.transformed))
    for (index, row) in rows.enumerated() {
      a.mov(row, argument(WinogradKernel.Argument.rows + index))
    }
    let program = LinearProgram.input(m)
    var pool = registers
    let factors = load(program.factors, &pool)
    let inputs = Array(pool.prefix(size))
    let free = Array(pool.dropFirst(size))
    try overChannels {
      for row in rows { a.add(row, isa.lanes * ElementAccess.byteCount(shape.inputType)) }
      a.add(.r11, isa.lanes * ElementAccess.byteCount(shape.transformedType))
    } _: { (tail) throws(ApusError) in
      for column in 0..<size {
        guard shape.columns.contains(column) else {
          a.vxorps(inputs[0], inputs[0], inputs[0])
          for row in 0..<size { a.vmovups(between(row, column), inputs[0]) }
          continue
        }
        for row in 0..<size {
          let place = Address(rows[row], column * shape.pixelStep)
          a.loadElements(inputs[row], place, shape.inputType, tail)
        }
        program.emit(a, inputs: inputs, free: free, .floats(factors)) { row, value in
          a.vmovups(between(row, column), value)
          return false
        }
      }
      for row in 0..<size {
        for column in 0..<size { a.vmovups(inputs[column], between(row, column)) }
        let pairs = tail == nil && ElementAccess.pairs(shape.transformedType, isa)
        var waiting: [Int: Vec] = [:]
        program.emit(a, inputs: inputs, free: free, .floats(factors)) { column, value in
          func place(_ column: Int) -> Address { Address(.r11, (row * size + column) * shape.planeStep) }
          if !pairs {
            a.storeElements(place(column), value, shape.transformedType, tail)
          } else if let (first, other) = waiting.popFirst() {
            a.storeElements(place(first), other, place(column), value)
          } else {
            waiting[column] = value
            return true
          }
          return false
        }
      }
    }
    return try leave([.rbp])
  }

  func generate(_ shape: WinogradKernel.Output) throws(ApusError) -> [UInt8] {
    let operandRegisters: [R64] = [.r8, .r9, .r10, .r11, .rdx, .rbx]
    guard shape.operands.count <= operandRegisters.count,
      shape.epilogue.inputCount <= shape.operands.count + 1
    else { throw ApusError(.notYetSupported, "an epilogue of \(shape.operands.count) operands") }
    enter([.rbx, .rbp])
    a.mov(.rax, argument(WinogradKernel.Argument.transformed))
    a.mov(.rcx, argument(WinogradKernel.Argument.output))
    for index in shape.operands.indices {
      a.mov(operandRegisters[index], argument(WinogradKernel.Argument.operands + index))
    }
    let down = LinearProgram.output(m).limited(to: shape.rows)
    let across = LinearProgram.output(m).limited(to: shape.columns)
    var pool = registers
    let factors = load(down.factors, &pool)
    let inputs = Array(pool.prefix(size))
    let free = Array(pool.dropFirst(size))
    let types = [shape.sumType] + shape.operandTypes
    let resultBytes = ElementAccess.byteCount(shape.resultType)
    try overChannels {
      a.add(.rax, width.bytes)
      a.add(.rcx, isa.lanes * resultBytes)
      for (index, kind) in shape.operands.enumerated() where kind != .scalar {
        a.add(
          operandRegisters[index], isa.lanes * ElementAccess.byteCount(shape.operandTypes[index]))
      }
    } _: { (tail) throws(ApusError) in
      if shape.padValue != 0 {
        let zero = Float(shape.padValue).bitPattern
        a.loadTail(inputs[0], Address(operandRegisters[shape.operands.count - 1]), tail)
        a.vmulps(inputs[0], inputs[0], a.constant(zero, width))
        a.vmovups(aside, inputs[0])
      }
      for column in 0..<size {
        for row in 0..<size {
          a.loadTail(
            inputs[row], Address(.rax, (row * size + column) * shape.planeStep), tail)
        }
        down.emit(a, inputs: inputs, free: free, .floats(factors)) { row, value in
          a.vmovups(between(row, column), value)
          return false
        }
      }
      for row in 0..<shape.rows {
        for column in 0..<size { a.vmovups(inputs[column], between(row, column)) }
        var results: [Int: Vec] = [:]
        across.emit(a, inputs: inputs, free: free, .floats(factors)) { column, value in
          results[column] = value
          return true
        }
        let rest = pool.filter { !results.values.contains($0) }
        let pairs = tail == nil && ElementAccess.pairs(shape.resultType, isa)
        var waiting: (place: Address, value: Vec)?
        for column in 0..<shape.columns {
          guard let sum = results[column] else { continue }
          if shape.padValue != 0 { a.vaddps(sum, sum, aside) }
          if shape.sumType == .int32 { a.vcvtps2dq(sum, sum) }
          let pixel = row * shape.width + column
          let emitter = ExpressionEmitter(a, isa: isa, free: rest, tail: tail, types: types) {
            input in
            if input == 0 { return .owned(sum) }
            let address = Address(operandRegisters[input - 1])
            let place: Address
            switch shape.operands[input - 1] {
            case .scalar: return .element(address)
            case .perColumn: place = address
            case .full:
              place = address.offset(pixel * shape.operandStride * ElementAccess.byteCount(types[input]))
            }
            return tail == nil ? .memory(place) : .tail(place)
          }
          let value = try emitter.emit(shape.epilogue, as: shape.resultType)
          let place = Address(.rcx, pixel * shape.pixelStride * resultBytes)
          guard pairs, waiting != nil || column + 1 < shape.columns else {
            a.storeElements(place, value, shape.resultType, tail)
            continue
          }
          if value != sum { a.vmovups(sum, value) }
          if let (other, first) = waiting {
            a.storeElements(other, first, place, sum)
            waiting = nil
          } else {
            waiting = (place, sum)
          }
        }
      }
    }
    return try leave([.rbx, .rbp])
  }

  /// Registers that an epilogue may use beside the results of a row.
  static func freeRegisters(_ isa: ISA, m: Int) -> Int {
    isa.registerCount - (isa == .avx512 ? 0 : 1) - LinearProgram.output(m).factors.count - m
  }
}

extension WinogradKernel {
  /// Registers that an epilogue may use.
  static func epilogueRegisters(_ isa: ISA, m: Int) -> Int {
    WinogradGenerator.freeRegisters(isa, m: m)
  }
}
