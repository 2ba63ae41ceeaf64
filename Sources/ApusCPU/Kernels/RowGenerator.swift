// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// Writes the code of a `RowKernel`.
struct RowGenerator {
  let columns: Int
  let operands: [RowKernel.OperandKind]
  let steps: [RowKernel.Step]
  let isa: ISA
  private let a = Assembler()
  private let width: VectorWidth
  /// Vector registers not yet given to a scalar.
  private var pool: [Vec]
  private var scalars: [Vec] = []
  private let tail: TailMask?
  private let addresses: [R64] = [.r8, .r9, .r10, .r11, .rbx, .rbp]
  /// Largest number of vectors worked on at once, each with its own partial result.
  private static let unroll = 4

  init(
    columns: Int, operands: [RowKernel.OperandKind], steps: [RowKernel.Step], isa: ISA
  ) {
    self.columns = columns
    self.operands = operands
    self.steps = steps
    self.isa = isa
    width = isa.width
    let width = isa.width
    pool = (0..<isa.registerCount).map { Vec($0, width) }
    if columns % isa.lanes == 0 {
      tail = nil
    } else {
      tail = isa == .avx512 ? .mask(Mask(7)) : .lanes(pool.removeLast(), count: columns % width.lanes)
    }
  }

  /// rdi operand addresses, rsi result, rdx rows, rcx first row; rax is the offset in the row.
  mutating func generate() throws(ApusError) -> [UInt8] {
    guard operands.count <= addresses.count else {
      throw ApusError(.notYetSupported, "a row kernel of \(operands.count) operands")
    }
    a.push(.rbx)
    a.push(.rbp)
    let rowBytes = columns * 4
    a.imul(.rcx, .rcx, rowBytes)
    var inputs: [Vec?] = []
    for (index, kind) in operands.enumerated() {
      a.mov(addresses[index], Address(.rdi, 8 * index))
      if kind == .rows { a.add(addresses[index], .rcx) }
      if kind == .scalar {
        let register = pool.removeFirst()
        a.vbroadcastss(register, Address(addresses[index]))
        inputs.append(register)
      } else {
        inputs.append(nil)
      }
    }
    if let tail { a.prepareTail(tail, count: columns % width.lanes, scratch: .rax) }
    let whole = pool
    let row = a.here()
    var single = false
    for step in steps {
      switch step {
      case .reduce(let reduction, let expression):
        try pass(expression, inputs, reducing: reduction, storing: false)
      case .store(let expression):
        try pass(expression, inputs, reducing: nil, storing: true)
      case .storeAndReduce(let expression, let reduction):
        try pass(expression, inputs, reducing: reduction, storing: true)
      case .scalar(let expression):
        let value = try scalar(expression, inputs)
        let register = try reserve()
        if register != value { a.vmovups(register, value) }
        scalars.append(register)
      case .export(let expression, let operand):
        a.vmovss(Address(addresses[operand]), try scalar(expression, inputs))
      case .finish(let expression):
        single = true
        a.vmovss(Address(.rsi), try scalar(expression, inputs))
      }
    }
    pool = whole
    scalars = []
    a.add(.rsi, single ? 4 : rowBytes)
    for (index, kind) in operands.enumerated() where kind == .rows {
      a.add(addresses[index], rowBytes)
    }
    a.dec(.rdx)
    a.j(.notEqual, row)
    a.pop(.rbp)
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private mutating func reserve() throws(ApusError) -> Vec {
    guard pool.count > 6 else {
      throw ApusError(.notYetSupported, "a row kernel with too many scalars")
    }
    return pool.removeFirst()
  }

  /// Where input `index` of an expression is, `offset` bytes behind the place in the row.
  private func input(_ index: Int, _ inputs: [Vec?], offset: Int, tail: TailMask?)
    -> ExpressionEmitter.Input
  {
    if index > operands.count { return .register(scalars[index - operands.count - 1]) }
    if index < operands.count, let register = inputs[index] { return .register(register) }
    let base = index == operands.count ? R64.rsi : addresses[index]
    let place = Address(base, index: .rax, offset)
    return tail == nil ? .memory(place) : .tail(place)
  }

  private func check(_ expression: ScalarExpr, elements: Bool) throws(ApusError) {
    var valid = expression.inputCount <= operands.count + 1 + scalars.count
    if !elements {
      expression.visitInputs { index in
        if index <= operands.count && !(index < operands.count && operands[index] == .scalar) {
          valid = false
        }
      }
    }
    if !valid { throw ApusError(.internalError, "a row step reads what is not there") }
  }

  private func scalar(_ expression: ScalarExpr, _ inputs: [Vec?]) throws(ApusError) -> Vec {
    try check(expression, elements: false)
    let emitter = ExpressionEmitter(a, isa: isa, free: pool) {
      input($0, inputs, offset: 0, tail: nil)
    }
    return try emitter.emit(expression)
  }

  /// Goes over the row once.
  private mutating func pass(
    _ expression: ScalarExpr, _ inputs: [Vec?], reducing: RowKernel.Reduction?, storing: Bool
  ) throws(ApusError) {
    try check(expression, elements: true)
    let vectors = columns / width.lanes
    // Cheap expressions wait for the sum, so several sums are kept.
    let wanted = reducing != nil && expression.nodeCount < 8 ? Self.unroll : 1
    let unroll = max(1, min(wanted, vectors))
    var partial: [Vec] = []
    if let reducing {
      for _ in 0..<unroll {
        let register = try reserve()
        let neutral = a.constant(words: [reducing.neutral.bitPattern])
        a.vbroadcastss(register, neutral)
        partial.append(register)
      }
    }
    a.clear(.rax)
    if vectors / unroll > 1 {
      a.mov(.rcx, vectors / unroll)
      let loop = a.here()
      for index in 0..<unroll {
        try vector(expression, inputs, index, reducing, partial, storing, nil)
      }
      a.add(.rax, unroll * width.bytes)
      a.dec(.rcx)
      a.j(.notEqual, loop)
    } else if vectors > 0 {
      for index in 0..<unroll {
        try vector(expression, inputs, index, reducing, partial, storing, nil)
      }
      a.add(.rax, unroll * width.bytes)
    }
    let rest = vectors % unroll
    for index in 0..<rest {
      try vector(expression, inputs, index, reducing, partial, storing, nil)
    }
    if let tail {
      if rest > 0 { a.add(.rax, rest * width.bytes) }
      try vector(expression, inputs, 0, reducing, partial, storing, tail)
    }
    if let reducing {
      let total = partial[0]
      guard let scratch = pool.first, let spare = pool.dropFirst().first else { return }
      for other in partial.dropFirst() { combine(reducing, total, other, scratch, width) }
      fold(reducing, total, scratch, spare)
      scalars.append(total)
      pool = partial.dropFirst() + pool
    }
  }

  /// One vector of elements, `index` vectors behind the place in the row.
  private func vector(
    _ expression: ScalarExpr, _ inputs: [Vec?], _ index: Int, _ reducing: RowKernel.Reduction?,
    _ partial: [Vec], _ storing: Bool, _ tail: TailMask?
  ) throws(ApusError) {
    guard let scratch = pool.last, let second = pool.dropLast().last else { return }
    let offset = index * width.bytes
    let emitter = ExpressionEmitter(a, isa: isa, free: pool.dropLast(2), tail: tail) {
      input($0, inputs, offset: offset, tail: tail)
    }
    let value = try emitter.emit(expression)
    if storing { a.storeTail(Address(.rsi, index: .rax, offset), value, tail) }
    guard let reducing else { return }
    var counted = value
    if let tail {
      // Lanes behind the row must not count.
      a.vbroadcastss(scratch, a.constant(words: [reducing.neutral.bitPattern]))
      switch tail {
      case .mask(let mask): a.vblendmps(scratch, mask, scratch, value)
      case .lanes(let lanes, _): a.vblendvps(scratch, mask: lanes, scratch, value)
      }
      counted = scratch
    }
    combine(reducing, partial[index], counted, second, width)
  }

  private func combine(
    _ reduction: RowKernel.Reduction, _ total: Vec, _ other: Vec, _ scratch: Vec,
    _ width: VectorWidth
  ) {
    a.combine(
      reduction, total.at(width), other.at(width), scratch: scratch.at(width), isa: isa)
  }

  /// Combines the lanes of `total` and puts the result into all of them.
  private func fold(
    _ reduction: RowKernel.Reduction, _ total: Vec, _ scratch: Vec, _ spare: Vec
  ) {
    if width == .zmm {
      a.vextractf64x4(scratch.at(.ymm), total, 1)
      combine(reduction, total, scratch, spare, .ymm)
      a.vextractf32x4(scratch.at(.xmm), total.at(.ymm), 1)
    } else {
      a.vextractf128(scratch.at(.xmm), total, 1)
    }
    combine(reduction, total, scratch, spare, .xmm)
    a.vpermilps(scratch.at(.xmm), total.at(.xmm), 0b01_00_11_10)
    combine(reduction, total, scratch, spare, .xmm)
    a.vpermilps(scratch.at(.xmm), total.at(.xmm), 0b10_11_00_01)
    combine(reduction, total, scratch, spare, .xmm)
    a.vbroadcastss(total, total.at(.xmm))
  }
}

extension Assembler {
  /// `total = total op other`, a NaN of either staying; mask register 1 is overwritten.
  func combine(
    _ reduction: RowKernel.Reduction, _ total: Vec, _ other: Vec, scratch: Vec, isa: ISA
  ) {
    switch reduction {
    case .sum: vaddps(total, total, other)
    case .product: vmulps(total, total, other)
    case .largest: vmaxps(total, total, other)
    case .maximum, .minimum:
      // The hardware gives the second operand when either is NaN.
      if isa == .avx512 {
        vcmpps(Mask(1), total, total, .ordered)
        if reduction == .maximum {
          vmaxps(total, total, other, mask: Mask(1))
        } else {
          vminps(total, total, other, mask: Mask(1))
        }
      } else {
        vcmpps(scratch, total, total, .unordered)
        vblendvps(scratch, mask: scratch, other, total)
        if reduction == .maximum {
          vmaxps(total, total, scratch)
        } else {
          vminps(total, total, scratch)
        }
      }
    }
  }
}
