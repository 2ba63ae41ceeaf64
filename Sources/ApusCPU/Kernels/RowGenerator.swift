// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Writes the code of a `RowKernel`.
struct RowGenerator {
  let columns: Int
  let operands: [RowKernel.OperandKind]
  let steps: [RowKernel.Step]
  let isa: ISA
  private let a = Assembler()
  private let width: VectorWidth
  private let types: [DataType]
  private let result: DataType
  /// The step that stores elements of the result.
  private let lastStore: Int?
  /// Whether elements that are read again have a row of their own.
  private let hasScratch: Bool
  /// Vector registers not yet given to a scalar.
  private var pool: [Vec]
  /// Of each row that is worked on.
  private var scalars: [[Vec]] = []
  private let tail: TailMask?
  private let addresses: [R64] = [.r8, .r9, .r10, .r11, .rbx, .rbp]
  /// Largest number of vectors worked on at once, each with its own partial result.
  private static let unroll = 4

  /// Rows that every step is done for before the next one: between the passes over a short row the
  /// processor would wait for what the row combines to.
  private var rowsTogether: Int {
    let vectors = (columns + width.lanes - 1) / width.lanes
    if isa != .avx512 || vectors > 64 { return 1 }
    return vectors > 16 ? 2 : 4
  }

  init(
    columns: Int, operands: [RowKernel.OperandKind], types: [DataType], steps: [RowKernel.Step],
    result: DataType, isa: ISA
  ) throws(ApusError) {
    guard operands.count <= addresses.count else {
      throw ApusError(.notYetSupported, "a row kernel of \(operands.count) operands")
    }
    let types = types + Array(repeating: .float32, count: max(0, operands.count - types.count))
    guard (types + [result]).allSatisfy({ ElementAccess.supports($0, isa) }),
      zip(operands, types).allSatisfy({ $0 != .scalar || $1 == .float32 })
    else {
      throw ApusError(.notYetSupported, "no vector code for elements of these types")
    }
    self.types = types
    self.columns = columns
    self.operands = operands
    self.steps = steps
    self.isa = isa
    self.result = result
    let last = steps.lastIndex(where: \.storesElements)
    lastStore = last
    hasScratch =
      result != .float32 && steps.indices.contains { $0 != last && steps[$0].storesElements }
    // Narrowing may change the register that would be combined.
    if result != .float32, let last, case .storeAndReduce = steps[last] {
      throw ApusError(.notYetSupported, "a narrow result that is combined as well")
    }
    guard !hasScratch || columns <= RowKernel.scratchColumns else {
      throw ApusError(.notYetSupported, "rows too long for scratch memory")
    }
    width = isa.width
    let width = isa.width
    pool = (0..<isa.registerCount).map { Vec($0, width) }
    if columns % isa.lanes == 0 {
      tail = nil
    } else {
      tail = isa == .avx512 ? .mask(Mask(7)) : .lanes(pool.removeLast(), count: columns % width.lanes)
    }
  }

  /// Where elements that are read again are, from the start of the row on.
  private func stored(_ row: Int) -> RowStart {
    hasScratch ? RowStart(.rsp, row * scratchBytes) : RowStart(.rsi, row * resultPitch)
  }

  private var scratchBytes: Int { (columns * 4 + 63) / 64 * 64 }

  /// Bytes from one row of the result to the next.
  private var resultPitch: Int {
    steps.leaveOneElement ? 4 : columns * ElementAccess.byteCount(result)
  }

  private func bytes(_ operand: Int) -> Int { ElementAccess.byteCount(types[operand]) }

  /// rdi operand addresses, rsi result, rdx rows, rcx first row, r8 the group of rows; rax is the place in
  /// the row.
  mutating func generate() throws(ApusError) -> [UInt8] {
    a.push(.rbx)
    a.push(.rbp)
    a.push(.r12)
    a.mov(.r12, .rsp)
    let together = rowsTogether
    if hasScratch {
      a.sub(.rsp, together * scratchBytes + 64)
      a.and(.rsp, -64)
    }
    a.imul(.rcx, .rcx, columns)
    a.imul(.rax, .r8, columns)
    var inputs: [Vec?] = []
    for (index, kind) in operands.enumerated() {
      let address = addresses[index]
      a.mov(address, Address(.rdi, 8 * index))
      switch kind {
      case .rows: a.lea(address, Address(address, index: .rcx, scale: bytes(index)))
      case .rowGroups: a.lea(address, Address(address, index: .rax, scale: bytes(index)))
      case .perColumn, .scalar: break
      }
      if kind == .scalar {
        let register = pool.removeFirst()
        a.vbroadcastss(register, Address(address))
        inputs.append(register)
      } else {
        inputs.append(nil)
      }
    }
    if let tail { a.prepareTail(tail, count: columns % width.lanes, scratch: .rax) }
    if together > 1 {
      let single = a.label()
      let done = a.label()
      a.sub(.rdx, together)
      a.j(.less, single)
      let loop = a.here()
      try emit(rows: together, inputs)
      a.sub(.rdx, together)
      a.j(.greaterOrEqual, loop)
      a.bind(single)
      a.add(.rdx, together)
      a.j(.equal, done)
      try emitEach(inputs)
      a.bind(done)
    } else {
      try emitEach(inputs)
    }
    a.mov(.rsp, .r12)
    a.pop(.r12)
    a.pop(.rbp)
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// A loop over rdx rows.
  private mutating func emitEach(_ inputs: [Vec?]) throws(ApusError) {
    let loop = a.here()
    try emit(rows: 1, inputs)
    a.dec(.rdx)
    a.j(.notEqual, loop)
  }

  /// Some rows, after which the addresses are those of the next.
  private mutating func emit(rows: Int, _ inputs: [Vec?]) throws(ApusError) {
    let whole = pool
    scalars = Array(repeating: [], count: rows)
    for (index, step) in steps.enumerated() {
      for row in 0..<rows { try emit(step, isLast: index == lastStore, row, inputs) }
    }
    pool = whole
    a.add(.rsi, rows * resultPitch)
    for (index, kind) in operands.enumerated() where kind == .rows {
      a.add(addresses[index], rows * columns * bytes(index))
    }
  }

  private mutating func emit(
    _ step: RowKernel.Step, isLast: Bool, _ row: Int, _ inputs: [Vec?]
  ) throws(ApusError) {
    let storing = isLast ? Target.result : .readAgain
    switch step {
    case .reduce(let reduction, let expression):
      try pass(expression, row, inputs, reducing: reduction, storing: nil)
    case .store(let expression):
      try pass(expression, row, inputs, reducing: nil, storing: storing)
    case .storeAndReduce(let expression, let reduction):
      try pass(expression, row, inputs, reducing: reduction, storing: storing)
    case .scalar(let expression):
      let value = try scalar(expression, row, inputs)
      let register = try reserve()
      if register != value { a.vmovups(register, value) }
      scalars[row].append(register)
    case .export(let expression, let operand):
      a.vmovss(Address(addresses[operand]), try scalar(expression, row, inputs))
    case .finish(let expression):
      a.vmovss(Address(.rsi, row * resultPitch), try scalar(expression, row, inputs))
    }
  }

  /// Where elements are stored.
  private enum Target { case result, readAgain }

  private mutating func reserve() throws(ApusError) -> Vec {
    guard pool.count > 6 else {
      throw ApusError(.notYetSupported, "a row kernel with too many scalars")
    }
    return pool.removeFirst()
  }

  /// Where input `index` of an expression is, `offset` elements behind the place in the row.
  private func input(_ index: Int, _ row: Int, _ inputs: [Vec?], offset: Int, tail: TailMask?)
    -> ExpressionEmitter.Input
  {
    if index > operands.count { return .register(scalars[row][index - operands.count - 1]) }
    if index < operands.count, let register = inputs[index] { return .register(register) }
    let place: Address
    if index == operands.count {
      place = stored(row).element(offset, bytes: 4)
    } else {
      let rowStart = operands[index] == .rows ? row * columns * bytes(index) : 0
      place = RowStart(addresses[index], rowStart).element(offset, bytes: bytes(index))
    }
    return tail == nil ? .memory(place) : .tail(place)
  }

  private func check(_ expression: ScalarExpr, _ row: Int, elements: Bool) throws(ApusError) {
    var valid = expression.inputCount <= operands.count + 1 + scalars[row].count
    if !elements {
      expression.visitInputs { index in
        if index <= operands.count && !(index < operands.count && operands[index] == .scalar) {
          valid = false
        }
      }
    }
    if !valid { throw ApusError(.internalError, "a row step reads what is not there") }
  }

  private func scalar(_ expression: ScalarExpr, _ row: Int, _ inputs: [Vec?]) throws(ApusError)
    -> Vec
  {
    try check(expression, row, elements: false)
    let emitter = ExpressionEmitter(a, isa: isa, free: pool) {
      input($0, row, inputs, offset: 0, tail: nil)
    }
    return try emitter.emit(expression)
  }

  /// Goes over the row once.
  private mutating func pass(
    _ expression: ScalarExpr, _ row: Int, _ inputs: [Vec?], reducing: RowKernel.Reduction?,
    storing: Target?
  ) throws(ApusError) {
    try check(expression, row, elements: true)
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
        try vector(expression, row, inputs, index, reducing, partial, storing, nil)
      }
      a.add(.rax, unroll * width.lanes)
      a.dec(.rcx)
      a.j(.notEqual, loop)
    } else if vectors > 0 {
      for index in 0..<unroll {
        try vector(expression, row, inputs, index, reducing, partial, storing, nil)
      }
      a.add(.rax, unroll * width.lanes)
    }
    let rest = vectors % unroll
    for index in 0..<rest {
      try vector(expression, row, inputs, index, reducing, partial, storing, nil)
    }
    if let tail {
      if rest > 0 { a.add(.rax, rest * width.lanes) }
      try vector(expression, row, inputs, 0, reducing, partial, storing, tail)
    }
    if let reducing {
      let total = partial[0]
      guard let scratch = pool.first, let spare = pool.dropFirst().first else { return }
      for other in partial.dropFirst() { combine(reducing, total, other, scratch, width) }
      fold(reducing, total, scratch, spare)
      scalars[row].append(total)
      pool = partial.dropFirst() + pool
    }
  }

  /// One vector of elements, `index` vectors behind the place in the row.
  private func vector(
    _ expression: ScalarExpr, _ row: Int, _ inputs: [Vec?], _ index: Int, _ reducing: RowKernel.Reduction?,
    _ partial: [Vec], _ storing: Target?, _ tail: TailMask?
  ) throws(ApusError) {
    guard let scratch = pool.last, let second = pool.dropLast().last else { return }
    let offset = index * width.lanes
    let emitter = ExpressionEmitter(
      a, isa: isa, free: pool.dropLast(2), tail: tail, types: types
    ) {
      input($0, row, inputs, offset: offset, tail: tail)
    }
    let type = storing == .result ? result : .float32
    let value = try emitter.emit(expression, as: type)
    if let storing {
      let start = storing == .result ? RowStart(.rsi, row * resultPitch) : stored(row)
      a.storeElements(
        start.element(offset, bytes: ElementAccess.byteCount(type)), value, type, tail)
    }
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

/// Where the elements of a row start.
private struct RowStart {
  let base: R64
  let displacement: Int

  init(_ base: R64, _ displacement: Int) {
    self.base = base
    self.displacement = displacement
  }

  /// The place of element `rax + further`.
  func element(_ further: Int, bytes: Int) -> Address {
    Address(base, index: .rax, scale: bytes, displacement + further * bytes)
  }
}

extension RowKernel.Step {
  /// Whether it writes all elements of a row.
  fileprivate var storesElements: Bool {
    switch self {
    case .store, .storeAndReduce: true
    case .reduce, .scalar, .finish, .export: false
    }
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
