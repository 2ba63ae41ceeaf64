// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// A generated loop that evaluates a `ScalarExpr` elementwise.
///
/// The result may be one of the contiguous operands' memory.
package final class PointwiseKernel: Sendable {
  /// How an operand is indexed.
  package enum OperandKind: Hashable, Sendable {
    /// Element `i` of the result reads element `i`.
    case contiguous
    /// Every element of the result reads the one element.
    case scalar
    /// Element `i` of the result reads element `i % period`, which all such operands share.
    case period(Int)
  }

  /// Rows that are computed one after the other by the same code. Operands that repeat do so in every row.
  package struct Rows: Hashable, Sendable {
    /// Elements of a row.
    package var width: Int
    /// Elements from one row to the next, of each operand and of the result.
    package var steps: [Int]
    package var resultStep: Int

    package init(width: Int, steps: [Int], resultStep: Int) {
      self.width = width
      self.steps = steps
      self.resultStep = resultStep
    }

    /// Rows that follow each other, one period long.
    init(period: Int, _ operands: [OperandKind]) {
      self.init(
        width: period, steps: operands.map { $0 == .contiguous ? period : 0 }, resultStep: period)
    }
  }

  private let memory: ExecutableMemory
  private let rows: Rows?
  private let operandBytes: [Int]
  private let resultBytes: Int

  /// The element types of a loop.
  package struct Types: Hashable, Sendable {
    package var operands: [DataType]
    package var result: DataType

    /// Names the types.
    package init(operands: [DataType], result: DataType) {
      self.operands = operands
      self.result = result
    }
  }

  /// `(operand addresses, result, number of elements, or of rows, the first of them for contiguous operands)`
  private typealias Code = @convention(c) (
    UnsafePointer<UnsafeRawPointer>, UnsafeMutableRawPointer, Int, Int
  ) -> Void

  /// Generates the loop; without `types` everything is single precision, and without `rows` contiguous
  /// operands and the result have no gaps.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code or there are too many operands.
  package init(
    _ expression: ScalarExpr, operands: [OperandKind], types: Types? = nil, rows: Rows? = nil,
    isa: ISA = .current
  ) throws(ApusError) {
    let types =
      types
      ?? Types(operands: Array(repeating: .float32, count: operands.count), result: .float32)
    resultBytes = ElementAccess.byteCount(types.result)
    operandBytes = types.operands.map(ElementAccess.byteCount)
    guard (types.operands + [types.result]).allSatisfy({ ElementAccess.supports($0, isa) }) else {
      throw ApusError(.notYetSupported, "no vector code for elements of these types")
    }
    guard isa != .portable else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    var rows = rows
    for case .period(let length) in operands {
      if length < 1 || (rows != nil && rows?.width != length) {
        throw ApusError(.notYetSupported, "operands that repeat with different periods")
      }
      rows = rows ?? Rows(period: length, operands)
    }
    if let rows, (rows.steps + [rows.width, rows.resultStep]).contains(where: { $0 > 1 << 28 }) {
      throw ApusError(.notYetSupported, "rows of more than \(1 << 28) elements")
    }
    self.rows = rows
    memory = try ExecutableMemory(
      Self.generate(expression, operands, types, rows, isa), name: "pointwise \(isa.rawValue)")
  }

  /// Elements one task computes.
  private static let taskElements = 16384

  /// Computes `count` elements of the result, whole rows of them.
  package func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer, count: Int,
    pool: ThreadPool
  ) {
    let perTask = rows.map { max(1, Self.taskElements / $0.width) } ?? Self.taskElements
    let all = count / (rows?.width ?? 1)
    pool.parallelFor(
      (all + perTask - 1) / perTask, (self, operands, result, all, perTask)
    ) { context, task in
      let (kernel, operands, result, all, perTask) = context
      let first = task * perTask
      kernel.run(operands, result, from: first, count: min(perTask, all - first))
    }
  }

  /// Computes some elements, or rows, on the calling thread; operands start where they do for the whole.
  func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, _ result: UnsafeMutableRawPointer, from first: Int,
    count: Int
  ) {
    let code = memory.function(as: Code.self)
    let place = result + first * (rows?.resultStep ?? 1) * resultBytes
    guard let rows, first > 0 else { return code(operands, place, count, first) }
    withUnsafeTemporaryAllocation(
      of: UnsafeRawPointer.self, capacity: max(1, rows.steps.count)
    ) { places in
      guard let base = places.baseAddress else { return }
      for (index, step) in rows.steps.enumerated() {
        (base + index).initialize(to: operands[index] + first * step * operandBytes[index])
      }
      code(base, place, count, 0)
    }
  }

  // MARK: Generation

  /// Arguments: rdi operand addresses, rsi result, rdx number of elements or rows, rcx elements that
  /// contiguous operands start further on. r8, r9, r10, r11, rax, rbx... hold operand pointers; rcx becomes
  /// the index, rdi the number of rows left.
  private static func generate(
    _ expression: ScalarExpr, _ operands: [OperandKind], _ types: Types, _ rows: Rows?, _ isa: ISA
  ) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    let width = isa.width
    let scratch: [R64] = [.r8, .r9, .r10, .r11, .rax, .rbx, .rbp, .r12, .r13, .r14, .r15]
    let calleeSaved: [R64] = [.rbx, .rbp, .r12, .r13, .r14, .r15]
    guard operands.count <= scratch.count, operands.count >= expression.inputCount else {
      throw ApusError(.notYetSupported, "a pointwise kernel of \(operands.count) operands")
    }
    let used = Array(scratch.prefix(operands.count))
    let saved = calleeSaved.filter { used.contains($0) }
    for register in saved { a.push(register) }
    // Operands occupy registers from 0 up; the rest is for the expression. Scalars are loaded once.
    let count = operands.count
    var vectors = (0..<isa.registerCount).map { Vec($0, width) }
    // AVX2 has no masks for bytes: where the number of elements is not known, the last ones come singly.
    let isNarrow = (types.operands + [types.result]).contains { $0.bitWidth < 32 }
    let single = isa != .avx512 && isNarrow && rows == nil
    let tailCount = rows.map { $0.width % isa.lanes } ?? (single ? 1 : nil)
    let tail: TailMask =
      isa == .avx512 ? .mask(Mask(7)) : .lanes(vectors.removeLast(), count: tailCount)
    let inputs = Array(vectors.prefix(count))
    let free = Array(vectors.dropFirst(count))
    let bytes = types.operands.map(ElementAccess.byteCount)
    for (index, kind) in operands.enumerated() {
      a.mov(used[index], Address(.rdi, 8 * index))
      switch kind {
      case .contiguous where rows == nil:
        a.lea(used[index], Address(used[index], index: .rcx, scale: bytes[index]))
      case .scalar:
        guard types.operands[index].bitWidth == 32 else {
          throw ApusError(.notYetSupported, "a single element of \(types.operands[index])")
        }
        a.vbroadcastss(inputs[index], Address(used[index]))
      case .contiguous, .period: break
      }
    }
    /// One vector of elements. Behind a gap the hardware does not see where a row goes on, so that the next
    /// row is fetched here.
    func body(masked: Bool) throws(ApusError) {
      for (index, kind) in operands.enumerated() where kind != .scalar {
        let place = Address(used[index], index: .rcx, scale: bytes[index])
        if let rows, rows.steps[index] > rows.width {
          a.prefetcht0(place.offset(rows.steps[index] * bytes[index]))
        }
        a.loadElements(inputs[index], place, types.operands[index], masked ? tail : nil)
      }
      let emitter = ExpressionEmitter(a, isa: isa, free: free, types: types.operands) {
        .register(inputs[$0])
      }
      let value = try emitter.emit(expression, as: types.result)
      let place = Address(.rsi, index: .rcx, scale: ElementAccess.byteCount(types.result))
      a.storeElements(place, value, types.result, masked ? tail : nil)
    }
    if let rows {
      let whole = rows.width / isa.lanes
      let rest = rows.width % isa.lanes
      if rest > 0 { a.prepareTail(tail, count: rest, scratch: .rcx) }
      a.mov(.rdi, .rdx)
      let row = a.here()
      a.clear(.rcx)
      if whole > 0 {
        a.mov(.rdx, whole)
        let loop = a.here()
        try body(masked: false)
        a.add(.rcx, isa.lanes)
        a.dec(.rdx)
        a.j(.notEqual, loop)
      }
      if rest > 0 { try body(masked: true) }
      for (index, step) in rows.steps.enumerated() where step > 0 {
        a.add(used[index], step * bytes[index])
      }
      a.add(.rsi, rows.resultStep * ElementAccess.byteCount(types.result))
      a.dec(.rdi)
      a.j(.notEqual, row)
    } else {
      try overElements(a, tail, lanes: isa.lanes, single: single, body)
    }
    for register in saved.reversed() { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// A loop over rdx elements, rcx the index; `single` says that those of the last vector come singly.
  private static func overElements(
    _ a: Assembler, _ tail: TailMask, lanes: Int, single: Bool,
    _ body: (_ masked: Bool) throws(ApusError) -> Void
  ) throws(ApusError) {
    let remainder = a.label()
    let done = a.label()
    a.clear(.rcx)
    a.sub(.rdx, lanes)
    a.j(.less, remainder)
    let loop = a.here()
    try body(false)
    a.add(.rcx, lanes)
    a.sub(.rdx, lanes)
    a.j(.greaterOrEqual, loop)
    a.bind(remainder)
    a.add(.rdx, lanes)
    a.j(.lessOrEqual, done)
    if single {
      a.prepareTail(tail, count: 1, scratch: .rdi)
      let next = a.here()
      try body(true)
      a.inc(.rcx)
      a.dec(.rdx)
      a.j(.notEqual, next)
    } else {
      a.prepareTail(tail, count: .rdx, scratch: .rdi)
      try body(true)
    }
    a.bind(done)
  }
}
