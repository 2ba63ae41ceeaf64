// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// A generated loop over rows that normalises every element by the squares of its neighbours in the row
/// (local response normalisation): `epilogue(x * (bias + factor * sum(x^2 of the window))^-exponent)`.
///
/// A row's squares are written to the stack with zeros around them; windows then are sums of
/// unaligned loads, without special cases at the ends.
package final class NeighbourNormKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    package var columns: Int
    /// Neighbours that count on either side.
    package var before: Int
    package var after: Int
    package var bias: Double
    package var factor: Double
    package var exponent: Double
    /// An expression of the normalised element.
    package var epilogue: ScalarExpr
    package var resultType: DataType

    /// Describes a loop; bias and factor positive.
    package init(
      columns: Int, before: Int, after: Int, bias: Double, factor: Double, exponent: Double,
      epilogue: ScalarExpr = .input(0), resultType: DataType = .float32
    ) {
      self.columns = columns
      self.before = before
      self.after = after
      self.bias = bias
      self.factor = factor
      self.exponent = exponent
      self.epilogue = epilogue
      self.resultType = resultType
    }
  }

  private let memory: ExecutableMemory
  private let shape: Shape

  /// `(x, result, rows)`
  private typealias Code = @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void

  /// Longest row whose squares go to the stack.
  package static let columnLimit = 16384

  /// Generates the loop.
  ///
  /// - Throws: `not-yet-supported` for windows wider than vectors, long rows, parameters for which the
  ///   power may not exist, or a function without vector code.
  package init(_ shape: Shape, isa: ISA = .current) throws(ApusError) {
    guard isa != .portable, shape.columns > 0, shape.columns <= Self.columnLimit, shape.bias > 0,
      shape.factor >= 0, shape.before >= 0, shape.after >= 0,
      max(shape.before, shape.after) <= isa.lanes,
      ElementAccess.supports(shape.resultType, isa)
    else { throw ApusError(.notYetSupported, "this normalisation has no generated kernel") }
    self.shape = shape
    memory = try ExecutableMemory(
      NeighbourNormGenerator(shape, isa).generate(), name: "neighbours \(isa.rawValue)")
  }

  /// Normalises `rows` rows.
  package func run(
    _ x: UnsafeRawPointer, result: UnsafeMutableRawPointer, rows: Int, pool: ThreadPool
  ) {
    let perTask = max(1, 8192 / shape.columns)
    let bytes = shape.columns * ElementAccess.byteCount(shape.resultType)
    pool.parallelFor(
      (rows + perTask - 1) / perTask,
      (memory.function(as: Code.self), x, result, rows, perTask, shape.columns * 4, bytes)
    ) { context, task in
      let (code, x, result, rows, perTask, from, to) = context
      let first = task * perTask
      code(x + first * from, result + first * to, min(perTask, rows - first))
    }
  }
}

/// Writes the code: rax reads, rcx writes, rdx counts rows, rsi is the offset in the row's squares.
private struct NeighbourNormGenerator {
  private let a = Assembler()
  private let shape: NeighbourNormKernel.Shape
  private let isa: ISA
  private let width: VectorWidth
  private let tail: TailMask?
  private let registers: [Vec]
  private let vectors: Int

  init(_ shape: NeighbourNormKernel.Shape, _ isa: ISA) {
    self.shape = shape
    self.isa = isa
    let width = isa.width
    self.width = width
    var all = (0..<isa.registerCount).map { Vec($0, width) }
    if shape.columns % isa.lanes == 0 {
      tail = nil
    } else {
      tail = isa == .avx512 ? .mask(Mask(7)) : .lanes(all.removeLast(), count: shape.columns % isa.lanes)
    }
    registers = all
    vectors = (shape.columns + isa.lanes - 1) / isa.lanes
  }

  func generate() throws(ApusError) -> [UInt8] {
    let frame = (vectors + 2) * width.bytes
    a.push(.rbp)
    a.mov(.rbp, .rsp)
    a.mov(.rax, .rdi)
    a.mov(.rcx, .rsi)
    a.sub(.rsp, frame)
    a.and(.rsp, -64)
    if let tail { a.prepareTail(tail, count: shape.columns % isa.lanes, scratch: .rsi) }
    let (value, rest) = (registers[0], Array(registers.dropFirst()))
    a.vxorps(value, value, value)
    a.vmovups(Address(.rsp), value)
    a.vmovups(Address(.rsp, (vectors + 1) * width.bytes), value)
    let row = a.here()
    try overColumns { (tail) throws(ApusError) in
      a.loadTail(value, Address(.rax), tail)
      a.vmulps(value, value, value)
      a.vmovups(Address(.rsp, index: .rsi, width.bytes), value)
      if tail == nil { a.add(.rax, width.bytes) }
    }
    // Back to the row's beginning.
    a.sub(.rax, shape.columns / isa.lanes * width.bytes)
    try overColumns { (tail) throws(ApusError) in
      try normalise(value, rest, tail)
      a.add(.rax, tail == nil ? width.bytes : shape.columns % isa.lanes * 4)
      let count = tail == nil ? isa.lanes : shape.columns % isa.lanes
      a.add(.rcx, count * ElementAccess.byteCount(shape.resultType))
    }
    a.dec(.rdx)
    a.j(.notEqual, row)
    a.mov(.rsp, .rbp)
    a.pop(.rbp)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private func overColumns(_ body: (TailMask?) throws(ApusError) -> Void) throws(ApusError) {
    let whole = shape.columns / isa.lanes
    a.clear(.rsi)
    if whole > 0 {
      let loop = a.here()
      try body(nil)
      a.add(.rsi, width.bytes)
      a.cmp(.rsi, whole * width.bytes)
      a.j(.notEqual, loop)
    }
    if let tail { try body(tail) }
  }

  private func normalise(_ sum: Vec, _ rest: [Vec], _ tail: TailMask?) throws(ApusError) {
    for offset in -shape.before...shape.after {
      let place = Address(.rsp, index: .rsi, width.bytes + offset * 4)
      if offset == -shape.before { a.vmovups(sum, place) } else { a.vaddps(sum, sum, place) }
    }
    let (power, free) = (rest[0], Array(rest.dropFirst()))
    let base = ScalarExpr.input(0) * .const(shape.factor) + .const(shape.bias)
    let factor = try emit(scale(base), free + [power], tail) { _ in .register(sum) }
    a.vmovups(power, factor)
    let result = try emit(
      shape.epilogue.substituting { _ in .input(0) * .input(1) }, free + [sum], tail,
      as: shape.resultType
    ) { input in
      input == 1 ? .register(power) : tail == nil ? .memory(Address(.rax)) : .tail(Address(.rax))
    }
    a.storeElements(Address(.rcx), result, shape.resultType, tail)
  }

  private func emit(
    _ expression: ScalarExpr, _ free: [Vec], _ tail: TailMask?, as type: DataType = .float32,
    input: @escaping (Int) -> ExpressionEmitter.Input
  ) throws(ApusError) -> Vec {
    let emitter = ExpressionEmitter(a, isa: isa, free: free, tail: tail, input: input)
    return try emitter.emit(expression, as: type)
  }

  /// `base^-exponent`; the usual exponent of 3/4 by square roots.
  private func scale(_ base: ScalarExpr) -> ScalarExpr {
    guard shape.exponent == 0.75 else { return .binary(.power, base, .const(-shape.exponent)) }
    let root = ScalarExpr.unary(.squareRoot, base)
    return .unary(.reciprocal, root * .unary(.squareRoot, root))
  }
}
