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

  private let memory: ExecutableMemory
  private let operands: [OperandKind]
  private let period: Int?
  private let isa: ISA
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

  /// `(operand addresses, result, element count, element at which contiguous operands start)`
  private typealias Code = @convention(c) (
    UnsafePointer<UnsafeRawPointer>, UnsafeMutableRawPointer, Int, Int
  ) -> Void

  /// Generates the loop; without `types` everything is single precision.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code or there are too many operands.
  package init(
    _ expression: ScalarExpr, operands: [OperandKind], types: Types? = nil, isa: ISA = .current
  ) throws(ApusError) {
    let types =
      types
      ?? Types(operands: Array(repeating: .float32, count: operands.count), result: .float32)
    resultBytes = ElementAccess.byteCount(types.result)
    guard (types.operands + [types.result]).allSatisfy({ ElementAccess.supports($0, isa) }) else {
      throw ApusError(.notYetSupported, "no vector code for elements of these types")
    }
    guard isa != .portable else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    var period: Int?
    for case .period(let length) in operands {
      if length < 1 || (period != nil && period != length) {
        throw ApusError(.notYetSupported, "operands that repeat with different periods")
      }
      period = length
    }
    self.operands = operands
    self.period = period
    self.isa = isa
    memory = try ExecutableMemory(
      Self.generate(expression, operands, types, isa), name: "pointwise \(isa.rawValue)")
  }

  /// Elements one task computes.
  private static let taskElements = 16384

  /// Computes `count` elements.
  package func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer, count: Int,
    pool: ThreadPool
  ) {
    let code = memory.function(as: Code.self)
    let addresses = (code, operands, result, resultBytes)
    // Rows keep the repeating operands in step: a task is a number of whole periods, or if the
    // period is long, a part of one.
    if let period {
      let rows = count / period
      let rowsPerTask = max(1, Self.taskElements / period)
      pool.parallelFor(
        (rows + rowsPerTask - 1) / rowsPerTask, (addresses, rows, rowsPerTask, period)
      ) { context, task in
        let ((code, operands, result, bytes), rows, rowsPerTask, period) = context
        let end = min(rows, (task + 1) * rowsPerTask)
        for row in task * rowsPerTask..<end {
          code(operands, result + row * period * bytes, period, row * period)
        }
      }
      return
    }
    let tasks = (count + Self.taskElements - 1) / Self.taskElements
    pool.parallelFor(tasks, (addresses, count)) { context, task in
      let ((code, operands, result, bytes), count) = context
      let start = task * Self.taskElements
      code(operands, result + start * bytes, min(Self.taskElements, count - start), start)
    }
  }

  // MARK: Generation

  /// Arguments: rdi operand addresses, rsi result, rdx count, rcx elements that contiguous operands
  /// start further on. r8, r9, r10, r11, rax, rbx... hold operand pointers; rcx becomes the index.
  private static func generate(
    _ expression: ScalarExpr, _ operands: [OperandKind], _ types: Types, _ isa: ISA
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
    let tail: TailMask = isa == .avx512 ? .mask(Mask(7)) : .lanes(vectors.removeLast())
    let inputs = Array(vectors.prefix(count))
    let free = Array(vectors.dropFirst(count))
    for (index, kind) in operands.enumerated() {
      a.mov(used[index], Address(.rdi, 8 * index))
      switch kind {
      case .contiguous:
        let bytes = ElementAccess.byteCount(types.operands[index])
        a.lea(used[index], Address(used[index], index: .rcx, scale: bytes))
      case .scalar:
        guard types.operands[index].bitWidth == 32 else {
          throw ApusError(.notYetSupported, "a single element of \(types.operands[index])")
        }
        a.vbroadcastss(inputs[index], Address(used[index]))
      case .period: break
      }
    }
    func body(masked: Bool) throws(ApusError) {
      for (index, kind) in operands.enumerated() where kind != .scalar {
        let type = types.operands[index]
        let place = Address(
          used[index], index: .rcx, scale: ElementAccess.byteCount(type))
        a.loadElements(inputs[index], place, type, masked ? tail : nil)
      }
      let emitter = ExpressionEmitter(a, isa: isa, free: free, types: types.operands) {
        .register(inputs[$0])
      }
      let value = try emitter.emit(expression, as: types.result)
      let place = Address(.rsi, index: .rcx, scale: ElementAccess.byteCount(types.result))
      a.storeElements(place, value, types.result, masked ? tail : nil)
    }
    let lanes = width.lanes
    let remainder = a.label()
    let done = a.label()
    a.clear(.rcx)
    a.sub(.rdx, lanes)
    a.j(.less, remainder)
    let loop = a.here()
    try body(masked: false)
    a.add(.rcx, lanes)
    a.sub(.rdx, lanes)
    a.j(.greaterOrEqual, loop)
    a.bind(remainder)
    a.add(.rdx, lanes)
    a.j(.lessOrEqual, done)
    a.prepareTail(tail, count: .rdx, scratch: .rdi)
    try body(masked: true)
    a.bind(done)
    for register in saved.reversed() { a.pop(register) }
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }
}
