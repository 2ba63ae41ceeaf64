// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// Functions of two numbers.
extension ExpressionEmitter {
  func binary(
    _ function: BinaryFunction, _ a: ScalarExpr, _ b: ScalarExpr
  ) throws(ApusError) -> Value {
    switch (isInteger(a), isInteger(b)) {
    case (true, true): return try integerBinary(function, a, b)
    case (false, false): break
    default:
      throw ApusError(.notYetSupported, "no vector code for an integer with a number")
    }
    // Conditions are joined bit by bit.
    let (a, b) = function.joinsConditions ? (a.truth, b.truth) : (a, b)
    if let fused = try multiplyAdd(function, a, b) { return fused }
    if function == .power { return try power(a, b) }
    // A constant second operand is read from memory.
    if case .const(let number) = b, let result = try withConstant(function, a, number) {
      return result
    }
    if [.add, .subtract, .multiply, .divide].contains(function), let place = place(b) {
      return try arithmetic(function, a, place)
    }
    if case .const(let number) = a, function == .add || function == .multiply,
      let result = try withConstant(function, b, number)
    {
      return result
    }
    if case .const = a, function == .maximum || function == .minimum {
      return try binary(function, b, a)
    }
    let (x, y) = try operands(a, b)
    if let predicate = Self.predicate(function) {
      let result = try target(x, y)
      truth(result, predicate, x.register, y.register)
      return finish(result, x, y)
    }
    switch function {
    case .minimum, .maximum:
      // The hardware gives the second operand when either is NaN: put back a first that is NaN.
      let result = try allocate()
      try write(function, result, x.register, y.register)
      try choose(
        result, .unordered, x.register, x.register, yes: x.register, no: result)
      release(x)
      release(y)
      return Value(register: result, owned: true)
    default:
      let result = try target(x, y)
      try write(function, result, x.register, y.register)
      return finish(result, x, y)
    }
  }

  /// The instruction of a function of two numbers.
  private func write(
    _ function: BinaryFunction, _ to: Vec, _ a: Vec, _ b: some VectorOperand
  ) throws(ApusError) {
    switch function {
    case .add: assembler.vaddps(to, a, b)
    case .subtract: assembler.vsubps(to, a, b)
    case .multiply: assembler.vmulps(to, a, b)
    case .divide: assembler.vdivps(to, a, b)
    case .minimum: assembler.vminps(to, a, b)
    case .maximum: assembler.vmaxps(to, a, b)
    case .logicalAnd: assembler.vandps(to, a, b)
    case .logicalOr: assembler.vorps(to, a, b)
    case .logicalXor: assembler.vxorps(to, a, b)
    default: throw ApusError(.notYetSupported, "no vector code for the function \(function.rawValue)")
    }
  }

  /// `a op constant` with the constant in memory.
  private func withConstant(
    _ function: BinaryFunction, _ a: ScalarExpr, _ number: Double
  ) throws(ApusError) -> Value? {
    switch function {
    case .minimum, .maximum:
      if narrowing == .packingInRange { return try arithmetic(function, a, constant(number)) }
      // The hardware gives the second operand when either is NaN, so a NaN value goes second.
      let operand = try value(a)
      let result = try load(number)
      try write(function, result, result, operand.register)
      release(operand)
      return Value(register: result, owned: true)
    case .add, .subtract, .multiply, .divide: return try arithmetic(function, a, constant(number))
    default: return nil
    }
  }

  /// Where in memory an expression lies as it is read by instructions.
  private func place(_ expression: ScalarExpr) -> Address? {
    guard case .input(let index) = expression, type(index) == .float32, case .memory(let address) = input(index)
    else { return nil }
    return address
  }

  /// `a op b` with b in memory.
  private func arithmetic(_ function: BinaryFunction, _ a: ScalarExpr, _ b: Address) throws(ApusError) -> Value {
    let operand = try value(a)
    let result = try target(operand)
    try write(function, result, operand.register, b)
    return Value(register: result, owned: true)
  }

  /// `x * y + z` in one instruction.
  private func multiplyAdd(
    _ function: BinaryFunction, _ a: ScalarExpr, _ b: ScalarExpr
  ) throws(ApusError) -> Value? {
    guard function == .add, shared[a] == nil, case .binary(.multiply, let x, let y) = a,
      !x.isConstant || !y.isConstant
    else { return nil }
    if case .const(let scale) = y, case .const(let bias) = b {
      let accumulator = try owned(try value(x))
      let factor = try load(scale)
      assembler.vfmadd213ps(accumulator, factor, constant(bias))
      release(factor)
      return Value(register: accumulator, owned: true)
    }
    let sum = try value(b)
    var factor = place(y)
    if case .const(let scale) = y { factor = constant(scale) }
    if let factor {
      let left = try value(x)
      let result = try owned(sum)
      assembler.vfmadd231ps(result, left.register, factor)
      release(left)
      return Value(register: result, owned: true)
    }
    let (left, right) = try operands(x, y)
    if !sum.owned, left.owned || right.owned {
      let (factor, other) = left.owned ? (left, right) : (right, left)
      assembler.vfmadd213ps(factor.register, other.register, sum.register)
      release(other)
      return factor
    }
    let result = try owned(sum)
    assembler.vfmadd231ps(result, left.register, right.register)
    release(left)
    release(right)
    return Value(register: result, owned: true)
  }
}
