// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Emits a `ScalarExpr` over vector registers of single-precision numbers; operands and results may be
/// of narrower types or integers, which are converted as they come and go.
///
/// Registers are given out from a fixed pool, the deeper operand first, so nothing is spilled; an
/// expression that needs more registers than the pool holds, or a function without vector code, is
/// refused with an error. Booleans are the numbers 0 and 1. Equal subexpressions are computed once
/// where a register can be spared for them.
///
/// Largest errors in units in the last place, measured over the whole range: exp 1, log 1, tanh 1,
/// erf 1 (with AVX-512 2.3 below 1/8, 1.5 above), sigmoid 2, softplus 2, reciprocal 0.5, rsqrt 1.5; pow
/// inherits `2 + |y log x|` of exp(y log x) (exact for small whole exponents up to the roundings of the
/// products).
package final class ExpressionEmitter {
  /// Where an operand of the expression is.
  package enum Input {
    /// In a register, which is left unchanged.
    case register(Vec)
    /// In a register whose last reader the expression is, unless it reads it more than once.
    case owned(Vec)
    /// In memory, one whole vector.
    case memory(Address)
    /// In memory, the lanes of the emitter's tail; nothing else may be read.
    case tail(Address)
    /// In memory, one element for all lanes.
    case element(Address)
  }

  /// What storing does to whole numbers in 32-bit lanes.
  package enum Narrowing {
    /// It takes the lowest bits.
    case truncating
    /// It packs lanes into 16 bits, adds what zero point is left, and packs again, all with saturation.
    case packing
    /// The same, where no number of the expression is NaN or infinite and 32-bit integers hold what is rounded last.
    case packingInRange
    /// It saturates unsigned lanes where `isUnsigned` says that they are, and takes the lowest bits else.
    case saturatingUnsigned
  }

  /// A register and whether its holder may overwrite it.
  struct Value {
    var register: Vec
    var owned: Bool
  }

  let assembler: Assembler
  let isa: ISA
  let width: VectorWidth
  private var free: [Vec]
  private let poolSize: Int
  private let tail: TailMask?
  let input: (Int) -> Input
  let types: [DataType]
  let mask = Mask(1)
  /// The expression whose results are stored.
  private var stored: ScalarExpr?
  private(set) var narrowing = Narrowing.truncating
  /// What has to be added to the result of the last `emit` when it is narrowed by packing.
  var zeroPointLeft = 0
  /// Whether the lanes of that result are unsigned and have to saturate when they are stored.
  var isUnsigned = false
  /// Most registers of the pool that were in use at once.
  package private(set) var peak = 0
  /// Inputs that are read more than once.
  private var readAgain: [Int: Int] = [:]
  /// Subexpressions that occur more than once, and the register that holds one to the end.
  private(set) var shared: [ScalarExpr: (count: Int, register: Vec?)] = [:]

  /// An emitter that may use the registers `free` and mask register 1. Operands without an entry in
  /// `types` are single precision.
  package init(
    _ assembler: Assembler, isa: ISA, free: [Vec], tail: TailMask? = nil, types: [DataType] = [],
    input: @escaping (Int) -> Input
  ) {
    self.types = types
    self.assembler = assembler
    self.tail = tail
    self.isa = isa
    self.width = isa.width
    self.free = free.reversed()
    poolSize = free.count
    self.input = input
  }

  /// How many registers besides those of its inputs an expression needs.
  ///
  /// - Parameters:
  ///   - narrowing: As in `emit`.
  ///   - input: Where its inputs are, in no register but number 0; all are there, and stay, where nothing else is said.
  package static func registersNeeded(
    _ expression: ScalarExpr, isa: ISA, types: [DataType] = [], result: DataType = .float32,
    narrowing: Narrowing = .truncating, input: ((Int) -> Input)? = nil
  ) throws(ApusError) -> Int {
    let all = (1..<isa.registerCount).map { Vec($0, isa.width) }
    let trial = ExpressionEmitter(
      Assembler(), isa: isa, free: all, types: types, input: input ?? { _ in .register(Vec(0, isa.width)) })
    _ = try trial.emit(expression, as: result, narrowing: narrowing)
    return trial.peak
  }

  /// Emits code for `expression`; the result is in the returned register, which is an input's own
  /// when the expression is just that input.
  ///
  /// - Parameters:
  ///   - type: What `storeElements` will store the lanes as.
  ///   - narrowing: How rounded numbers will be stored.
  package func emit(
    _ whole: ScalarExpr, as type: DataType = .float32, narrowing: Narrowing = .truncating
  ) throws(ApusError) -> Vec {
    self.narrowing = narrowing
    zeroPointLeft = 0
    isUnsigned = false
    let whole = whole.multiplyingByReciprocals(isInteger: isInteger)
    var expression = whole
    // Storing rounds.
    if case .cast(let inner, type) = whole, type.isFloat, !isInteger(inner) { expression = inner }
    guard isInteger(expression) == type.isInteger else {
      throw ApusError(.notYetSupported, "no vector code for results of \(type)")
    }
    stored = expression
    shared = [:]
    countSubexpressions(expression)
    shared = shared.filter { $0.value.count > 1 }
    readAgain = expression.useCounts().filter { $0.value > 1 }
    let result = try value(expression)
    release(result)
    for entry in shared.values { if let register = entry.register { release(register) } }
    return result.register
  }

  // MARK: Registers

  func allocate() throws(ApusError) -> Vec {
    guard let register = free.popLast() else {
      throw ApusError(
        .notYetSupported, "a pointwise expression needs more than \(poolSize) registers")
    }
    peak = max(peak, poolSize - free.count)
    return register
  }

  func release(_ register: Vec) { free.append(register) }
  func release(_ value: Value) { if value.owned { free.append(value.register) } }

  /// A register for the result of an instruction whose last read of `value` it is.
  func target(_ value: Value) throws(ApusError) -> Vec {
    value.owned ? value.register : try allocate()
  }

  /// A copy of `value` that may be overwritten.
  func owned(_ value: Value) throws(ApusError) -> Vec {
    if value.owned { return value.register }
    let copy = try allocate()
    assembler.vmovups(copy, value.register)
    return copy
  }

  /// The address of a constant for every lane.
  func constant(_ number: Double) -> Address {
    assembler.constant(Float(number).bitPattern, width)
  }
  func constant(bits: UInt32) -> Address { assembler.constant(bits, width) }

  /// A new register that holds a constant.
  func load(_ number: Double) throws(ApusError) -> Vec {
    let register = try allocate()
    load(Float(number).bitPattern, into: register)
    return register
  }
  func load(_ bits: UInt32, into register: Vec) {
    if bits == 0 {
      assembler.vxorps(register, register, register)
    } else if width == .zmm {
      var address = assembler.constant(bits, width)
      address.broadcast = false
      assembler.vbroadcastss(register, address)
    } else {
      assembler.vmovups(register, assembler.constant(bits, width))
    }
  }

  // MARK: The tree

  private func countSubexpressions(_ expression: ScalarExpr) {
    if case .input = expression { return }
    if case .const = expression { return }
    shared[expression, default: (0, nil)].count += 1
    if let known = shared[expression], known.count > 1 { return }
    switch expression {
    case .input, .const: break
    case .unary(_, let a), .cast(let a, _): countSubexpressions(a)
    case .binary(_, let a, let b):
      countSubexpressions(a)
      countSubexpressions(b)
    case .select(let c, let a, let b):
      countSubexpressions(c)
      countSubexpressions(a)
      countSubexpressions(b)
    }
  }

  func value(_ expression: ScalarExpr) throws(ApusError) -> Value {
    guard let entry = shared[expression] else { return try compute(expression) }
    // Nobody may overwrite the register: an earlier occurrence may still wait to be read.
    if let register = entry.register { return Value(register: register, owned: false) }
    let computed = try compute(expression)
    let register = try owned(computed)
    shared[expression] = (entry.count, register)
    return Value(register: register, owned: false)
  }

  private func compute(_ expression: ScalarExpr) throws(ApusError) -> Value {
    switch expression {
    case .input(let index):
      switch input(index) {
      case .register(let register): return Value(register: register, owned: false)
      case .owned(let register): return Value(register: register, owned: !isReadAgain(index))
      case .memory(let address):
        let register = try allocate()
        assembler.loadElements(register, address, type(index), nil)
        return Value(register: register, owned: true)
      case .tail(let address):
        let register = try allocate()
        assembler.loadElements(register, address, type(index), tail)
        return Value(register: register, owned: true)
      case .element(let address):
        guard type(index).bitWidth == 32 else {
          throw ApusError(.notYetSupported, "no vector code for a single \(type(index))")
        }
        let register = try allocate()
        assembler.vbroadcastss(register, address)
        return Value(register: register, owned: true)
      }
    case .const(let number): return Value(register: try load(number), owned: true)
    case .cast(let a, .float32):
      let operand = try value(a)
      guard isInteger(a) else { return operand }
      let result = try target(operand)
      assembler.vcvtdq2ps(result, operand.register)
      return Value(register: result, owned: true)
    case .cast(let a, .bfloat16) where isa == .avx512 && !isInteger(a):
      let operand = try value(a)
      let result = try target(operand)
      assembler.vcvtneps2bf16(result.at(.ymm), operand.register)
      assembler.vpmovzxwd(result, result.at(.ymm))
      assembler.vpslld(result, result, 16)
      return Value(register: result, owned: true)
    case .cast(let a, .bool) where !isInteger(a):
      let operand = try value(a)
      let result = try target(operand)
      truth(result, .notEqual, operand.register, constant(0))
      return Value(register: result, owned: true)
    case .cast(_, let type):
      if let result = try lookUp(expression) { return result }
      if let quantization = ScalarQuantization(expression), ElementAccess.supports(type, isa) {
        return try quantize(quantization, isStored: expression == stored)
      }
      throw ApusError(.notYetSupported, "no vector code for a conversion to \(type)")
    case .unary(let function, let a):
      guard !isInteger(a) else {
        throw ApusError(.notYetSupported, "no vector code for \(function.rawValue) of integers")
      }
      if function == .round, let result = try lookUp(expression) { return result }
      return try unary(function, try value(a))
    case .binary(let function, let a, let b): return try binary(function, a, b)
    case .select(let condition, let a, let b): return try select(condition, a, b)
    }
  }

  private func isReadAgain(_ input: Int) -> Bool { readAgain[input] != nil }

  func type(_ input: Int) -> DataType { input < types.count ? types[input] : .float32 }

  /// Whether the lanes of a subexpression hold integers.
  func isInteger(_ expression: ScalarExpr) -> Bool {
    switch expression {
    case .input(let index): type(index).isInteger
    case .const, .select: false
    case .cast(_, let type): type.isInteger
    case .unary(_, let a): isInteger(a)
    case .binary(let function, let a, let b): !function.isPredicate && isInteger(a) && isInteger(b)
    }
  }

  /// A rough measure of how many registers a subtree takes.
  private func depth(_ expression: ScalarExpr) -> Int {
    switch expression {
    case .input, .const: return 1
    case .unary(let function, let a):
      let own: Int =
        switch function {
        case .negate, .absolute, .squareRoot, .floor, .ceiling, .round, .truncate: 1
        default: 4
        }
      return Swift.max(own, depth(a))
    case .cast(let a, _): return depth(a)
    case .binary(let function, let a, let b):
      let left = depth(a)
      let right = depth(b)
      let both = left == right ? left + 1 : Swift.max(left, right)
      return function == .power ? Swift.max(both, 6) : both
    case .select(let c, let a, let b): return depth(c) + Swift.max(depth(a), depth(b))
    }
  }

  /// Evaluates both operands, the one that needs more registers first.
  func operands(_ a: ScalarExpr, _ b: ScalarExpr) throws(ApusError) -> (Value, Value) {
    if depth(b) > depth(a) {
      let second = try value(b)
      return (try value(a), second)
    }
    let first = try value(a)
    return (first, try value(b))
  }

  /// A register for a result that both operands may give up; the other one is released by `finish`.
  func target(_ a: Value, _ b: Value) throws(ApusError) -> Vec {
    if a.owned { return a.register }
    return try target(b)
  }

  func finish(_ result: Vec, _ a: Value, _ b: Value) -> Value {
    if a.owned && a.register != result { release(a) }
    if b.owned && b.register != result { release(b) }
    return Value(register: result, owned: true)
  }

  private func select(
    _ condition: ScalarExpr, _ a: ScalarExpr, _ b: ScalarExpr
  ) throws(ApusError) -> Value {
    let (yes, no) = try operands(a, b)
    let left: Value
    let right: Value
    let predicate: Predicate
    if shared[condition] == nil, case .binary(let function, let x, let y) = condition,
      let direct = Self.predicate(function)
    {
      (left, right) = try operands(x, y)
      predicate = direct
    } else {
      left = try value(condition)
      right = Value(register: try load(0), owned: true)
      predicate = .notEqual
    }
    let result = try target(yes, no)
    try choose(
      result, predicate, left.register, right.register, yes: yes.register, no: no.register)
    release(left)
    release(right)
    return finish(result, yes, no)
  }

  static func predicate(_ function: BinaryFunction) -> Predicate? {
    switch function {
    case .equal: .equal
    case .notEqual: .notEqual
    case .less: .less
    case .lessOrEqual: .lessOrEqual
    case .greater: .greater
    case .greaterOrEqual: .greaterOrEqual
    default: nil
    }
  }
}
