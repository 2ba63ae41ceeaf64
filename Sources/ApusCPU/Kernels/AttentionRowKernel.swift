// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code for the rows of attention's scores: one step of a softmax whose keys come in blocks.
///
/// Each row keeps the largest score so far, `m`, and the sum of `exp(score - m)` so far, `l`. A block of
/// scores raises `m` to `m'`; what was added up before is multiplied by `exp(m - m')`, and so are the
/// weighted sums of values (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). The
/// scores of the block become weights `exp(score - m')` in place, as numbers of the type the second product
/// reads.
///
/// `m` starts at the lowest finite number and so never is minus infinity: a row that sees no key of a
/// block has weights of zero there and not NaN.
package final class AttentionRowKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    package var scale: Double
    /// Whether a row of numbers is added to the scaled scores.
    package var hasMask: Bool
    /// The type of the weights: single precision or BF16.
    package var weightType: DataType
    /// Floats from one row of scores to the next.
    package var scorePitch: Int
    /// Floats of a row of weighted sums, whole vectors.
    package var sumPitch: Int
    package var isa: ISA
  }

  /// Words of the argument block.
  package enum Argument {
    package static let scores = 0
    /// The first row's mask, and bytes from one row's to the next.
    package static let mask = 1
    package static let maskStride = 2
    /// `m` and `l` of each row, side by side.
    package static let state = 3
    /// The rows' weighted sums so far; 0 when there are none yet.
    package static let sums = 4
    package static let rows = 5
    /// Whole vectors of keys seen, keys of a partial one behind them, and vectors of weights behind these
    /// that become zero.
    package static let vectors = 6
    package static let rest = 7
    package static let hidden = 8
    package static let count = 9
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void
  /// What `m` starts with.
  package static let lowest = -Float.greatestFiniteMagnitude

  /// Generates the code.
  ///
  /// - Throws: `not-yet-supported` without AVX2.
  package init(_ shape: Shape) throws(ApusError) {
    guard shape.isa != .portable else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    memory = try ExecutableMemory(
      AttentionRowGenerator(shape).generate(), name: "attention rows \(shape.isa.rawValue)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

/// Writes the code of an `AttentionRowKernel`.
private struct AttentionRowGenerator {
  let shape: AttentionRowKernel.Shape
  let a = Assembler()
  let isa: ISA
  let width: VectorWidth
  /// `m` before the block, `m` behind it, and the factor of earlier sums.
  let old: Vec
  let top: Vec
  let factor: Vec
  /// Partial results of a row: as many largest numbers at once, one sum.
  let partial: [Vec]
  let free: [Vec]
  let tail: TailMask

  init(_ shape: AttentionRowKernel.Shape) {
    self.shape = shape
    isa = shape.isa
    width = isa.width
    let width = isa.width
    var registers = (0..<isa.registerCount).map { Vec($0, width) }
    tail = isa == .avx512 ? .mask(Mask(7)) : .lanes(registers.removeLast(), count: nil)
    (old, top, factor) = (registers[0], registers[1], registers[2])
    partial = Array(registers[3..<7])
    free = Array(registers[7...])
  }

  private func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }

  /// rdi arguments, r8 scores, r9 mask, r10 bytes of a row of it, r11 state, rsi sums, rdx rows, rbx whole
  /// vectors, rbp keys behind them; rax counts keys.
  func generate() throws(ApusError) -> [UInt8] {
    typealias Argument = AttentionRowKernel.Argument
    a.push(.rbx)
    a.push(.rbp)
    for (register, index) in [
      (R64.r8, Argument.scores), (.r9, Argument.mask), (.r10, Argument.maskStride),
      (.r11, Argument.state), (.rsi, Argument.sums), (.rdx, Argument.rows),
      (.rbx, Argument.vectors), (.rbp, Argument.rest),
    ] { a.mov(register, argument(index)) }
    a.mov(.rcx, .rbp)
    a.prepareTail(tail, count: .rcx, scratch: .rax)
    let row = a.here()
    a.vbroadcastss(old, Address(.r11))
    try largest()
    try earlierFactor()
    try weights()
    rescale()
    a.add(.r8, 4 * shape.scorePitch)
    if shape.hasMask { a.add(.r9, .r10) }
    a.add(.r11, 8)
    a.dec(.rdx)
    a.j(.notEqual, row)
    a.pop(.rbp)
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// Goes over the keys of a row, `unroll` vectors at a time, then one, then the partial one.
  private func overKeys(
    unroll: Int, _ body: (_ index: Int, _ tail: TailMask?) throws(ApusError) -> Void
  ) throws(ApusError) {
    let (single, done, end) = (a.label(), a.label(), a.label())
    a.clear(.rax)
    a.mov(.rcx, .rbx)
    if unroll > 1 {
      a.sub(.rcx, unroll)
      a.j(.less, single)
      let loop = a.here()
      for index in 0..<unroll { try body(index, nil) }
      a.add(.rax, unroll * width.lanes)
      a.sub(.rcx, unroll)
      a.j(.greaterOrEqual, loop)
      a.bind(single)
      a.add(.rcx, unroll)
    }
    a.test(.rcx, .rcx)
    a.j(.equal, done)
    let loop = a.here()
    try body(0, nil)
    a.add(.rax, width.lanes)
    a.dec(.rcx)
    a.j(.notEqual, loop)
    a.bind(done)
    a.test(.rbp, .rbp)
    a.j(.equal, end)
    try body(0, tail)
    a.add(.rax, width.lanes)
    a.bind(end)
  }

  /// A vector of scaled and masked scores; lanes behind the last key are of no use.
  private func score(_ index: Int, _ tail: TailMask?) throws(ApusError) -> Vec {
    var expression = ScalarExpr.input(0)
    if shape.scale != 1 { expression = expression * .const(shape.scale) }
    if shape.hasMask { expression = expression + .input(1) }
    let emitter = ExpressionEmitter(a, isa: isa, free: free, tail: tail) { input in
      let place = Address(input == 0 ? .r8 : .r9, index: .rax, scale: 4, index * width.bytes)
      return tail == nil ? .memory(place) : .tail(place)
    }
    return try emitter.emit(expression)
  }

  /// `m'`, in every lane and in memory. A NaN is left to the weights, which it makes NaN.
  private func largest() throws(ApusError) {
    for register in partial { a.vmovups(register, old) }
    try overKeys(unroll: partial.count) { (index, tail) throws(ApusError) in
      let value = try score(index, tail)
      switch tail {
      case nil: a.vmaxps(partial[index], value, partial[index])
      case .mask(let mask): a.vmaxps(partial[index], value, partial[index], mask: mask)
      case .lanes(let lanes, _):
        // `m` takes the place of what is no score.
        a.vblendvps(value, mask: lanes, old, value)
        a.vmaxps(partial[index], value, partial[index])
      }
    }
    for other in partial.dropFirst() { a.vmaxps(partial[0], partial[0], other) }
    a.foldLanes(partial[0], scratch: free[0]) { a.vmaxps($0, $0, $1) }
    a.vmovups(top, partial[0])
    a.vmovss(Address(.r11), top.at(.xmm))
  }

  /// `exp(m - m')`, or zero where nothing has been added up.
  private func earlierFactor() throws(ApusError) {
    let done = a.label()
    a.vxorps(factor, factor, factor)
    a.test(.rsi, .rsi)
    a.j(.equal, done)
    a.vmovups(factor, try exponential(old, owned: false, free))
    a.bind(done)
  }

  /// `exp(x - m')`.
  private func exponential(_ x: Vec, owned: Bool, _ registers: [Vec]) throws(ApusError) -> Vec {
    let emitter = ExpressionEmitter(a, isa: isa, free: registers) { input in
      input == 1 ? .register(top) : owned ? .owned(x) : .register(x)
    }
    return try emitter.emit(.unary(.exponential, .input(0) - .input(1)))
  }

  /// The weights and their sum.
  private func weights() throws(ApusError) {
    let sum = partial[0]
    a.vxorps(sum, sum, sum)
    try overKeys(unroll: 2) { (index, tail) throws(ApusError) in
      let value = try score(index, tail)
      let weight = try exponential(value, owned: true, free.filter { $0 != value })
      // Hidden here and not before: numbers that vanish in exp are slow.
      switch tail {
      case nil: break
      case .mask(let mask): a.vmovups(weight, weight, mask: mask, zeroing: true)
      case .lanes(let lanes, _): a.vandps(weight, weight, lanes)
      }
      a.vaddps(sum, sum, weight)
      store(weight, index)
    }
    zeroHidden()
    a.foldLanes(sum, scratch: free[0]) { a.vaddps($0, $0, $1) }
    // l' = l exp(m - m') + sum
    a.vbroadcastss(old, Address(.r11, 4))
    a.vfmadd213ps(old, factor, sum)
    a.vmovss(Address(.r11, 4), old.at(.xmm))
  }

  /// Weights take the place of scores that were read before: they are not wider.
  private func store(_ weight: Vec, _ index: Int) {
    let bytes = ElementAccess.byteCount(shape.weightType)
    let place = Address(.r8, index: .rax, scale: bytes, index * width.lanes * bytes)
    a.storeElements(place, weight, shape.weightType, nil)
  }

  /// Keys that no query of the row sees have no weight.
  private func zeroHidden() {
    let done = a.label()
    let zero = free[0]
    a.mov(.rcx, argument(AttentionRowKernel.Argument.hidden))
    a.test(.rcx, .rcx)
    a.j(.equal, done)
    a.vxorps(zero, zero, zero)
    let loop = a.here()
    store(zero, 0)
    a.add(.rax, width.lanes)
    a.dec(.rcx)
    a.j(.notEqual, loop)
    a.bind(done)
  }

  /// Multiplies what was added up before.
  private func rescale() {
    let done = a.label()
    a.test(.rsi, .rsi)
    a.j(.equal, done)
    for offset in stride(from: 0, to: shape.sumPitch * 4, by: width.bytes) {
      let product = free[offset / width.bytes % 4]
      a.vmulps(product, factor, Address(.rsi, offset))
      a.vmovups(Address(.rsi, offset), product)
    }
    a.add(.rsi, 4 * shape.sumPitch)
    a.bind(done)
  }
}

extension Assembler {
  /// Combines the lanes of `total` by `combine(to, other)` and puts the result into all of them.
  func foldLanes(_ total: Vec, scratch: Vec, _ combine: (Vec, Vec) -> Void) {
    if total.width == .zmm {
      vextractf64x4(scratch.at(.ymm), total, 1)
      combine(total.at(.ymm), scratch.at(.ymm))
    }
    vextractf128(scratch.at(.xmm), total.at(.ymm), 1)
    combine(total.at(.xmm), scratch.at(.xmm))
    for order: UInt8 in [0b01_00_11_10, 0b10_11_00_01] {
      vpermilps(scratch.at(.xmm), total.at(.xmm), order)
      combine(total.at(.xmm), scratch.at(.xmm))
    }
    vbroadcastss(total, total.at(.xmm))
  }
}

/// Generated code that divides the weighted sums of rows by the sums of their weights.
package final class AttentionResultKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    package var columns: Int
    /// Floats of a row of sums, whole vectors.
    package var sumPitch: Int
    /// Bytes from one row of the result to the next.
    package var resultStride: Int
    package var resultType: DataType
    /// Whether rows without weights are NaN, as `0 / 0` is, or zero.
    package var keepsNaN: Bool
    package var isa: ISA
  }

  /// `(sums, state, result, rows)`
  private typealias Code = @convention(c) (Int, Int, Int, Int) -> Void

  private let memory: ExecutableMemory

  /// Generates the code.
  ///
  /// - Throws: `not-yet-supported` when results of this type cannot be stored.
  package init(_ shape: Shape) throws(ApusError) {
    guard ElementAccess.supports(shape.resultType, shape.isa) else {
      throw ApusError(.notYetSupported, "no attention with results of \(shape.resultType)")
    }
    memory = try ExecutableMemory(Self.generate(shape), name: "attention results")
  }

  /// Finishes `rows` rows.
  package func run(sums: Int, state: Int, result: Int, rows: Int) {
    guard rows > 0 else { return }
    memory.function(as: Code.self)(sums, state, result, rows)
  }

  private static func generate(_ shape: Shape) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    let (isa, width) = (shape.isa, shape.isa.width)
    func register(_ number: Int) -> Vec { Vec(number, width) }
    let (share, scratch, lanes) = (register(0), register(1), register(2))
    let rest = shape.columns % isa.lanes
    let tail: TailMask? = rest == 0 ? nil : isa == .avx512 ? .mask(Mask(7)) : .lanes(lanes, count: rest)
    if let tail { a.prepareTail(tail, count: rest, scratch: .rax) }
    let row = a.here()
    a.vbroadcastss(share, Address(.rsi, 4))
    if !shape.keepsNaN {
      // Where any key is seen the largest weight is one; the operand that may be NaN goes second.
      a.vbroadcastss(scratch, a.constant(words: [Float.leastNormalMagnitude.bitPattern]))
      a.vmaxps(share, scratch, share)
    }
    a.vbroadcastss(scratch, a.constant(words: [Float(1).bitPattern]))
    a.vdivps(share, scratch, share)
    let vectors = (shape.columns + isa.lanes - 1) / isa.lanes
    let bytes = ElementAccess.byteCount(shape.resultType)
    for index in 0..<vectors {
      let value = register(3 + index % 4)
      a.vmulps(value, share, Address(.rdi, index * width.bytes))
      a.storeElements(
        Address(.rdx, index * isa.lanes * bytes), value, shape.resultType,
        index == vectors - 1 ? tail : nil)
    }
    a.add(.rdi, 4 * shape.sumPitch)
    a.add(.rsi, 8)
    a.add(.rdx, shape.resultStride)
    a.dec(.rcx)
    a.j(.notEqual, row)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }
}
