// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The functions of one value, and powers. Polynomials are printed by Utilities/fit-polynomials.py.
extension ExpressionEmitter {
  func unary(_ function: UnaryFunction, _ x: Value) throws(ApusError) -> Value {
    let a = assembler
    switch function {
    case .negate:
      return try simple(x) { a.vxorps($0, $1, self.constant(bits: 0x8000_0000)) }
    case .absolute:
      return try simple(x) { a.vandps($0, $1, self.constant(bits: 0x7FFF_FFFF)) }
    case .squareRoot: return try simple(x) { a.vsqrtps($0, $1) }
    case .floor: return try simple(x) { a.vroundps($0, $1, 1) }
    case .ceiling: return try simple(x) { a.vroundps($0, $1, 2) }
    case .truncate: return try simple(x) { a.vroundps($0, $1, 3) }
    case .round: return try simple(x) { a.vroundps($0, $1, 0) }
    case .reciprocal: return try reciprocal(x)
    case .reciprocalSquareRoot:
      return try reciprocal(try simple(x) { a.vsqrtps($0, $1) })
    case .isNaN:
      return try simple(x) { self.truth($0, .unordered, $1, $1) }
    case .isInfinite:
      let size = try simple(x) { a.vandps($0, $1, self.constant(bits: 0x7FFF_FFFF)) }
      return try simple(size) { self.truth($0, .equal, $1, self.constant(.infinity)) }
    case .logicalNot:
      return try simple(x) { self.truth($0, .equal, $1, self.constant(0)) }
    case .sign: return try sign(x)
    case .exponential:
      let result = try owned(x)
      try exponential(result)
      return Value(register: result, owned: true)
    case .logarithm:
      let result = try logarithm(x.register)
      release(x)
      return Value(register: result, owned: true)
    case .hyperbolicTangent: return try hyperbolicTangent(x)
    case .errorFunction: return try errorFunction(x)
    case .sigmoid: return try sigmoid(x)
    case .softplus: return try softplus(x)
    default:
      throw ApusError(.notYetSupported, "no vector code for the function \(function.rawValue)")
    }
  }

  private func simple(
    _ x: Value, _ emit: (_ to: Vec, _ from: Vec) -> Void
  ) throws(ApusError) -> Value {
    let result = try target(x)
    emit(result, x.register)
    return Value(register: result, owned: true)
  }

  private func reciprocal(_ x: Value) throws(ApusError) -> Value {
    let one = try load(1)
    assembler.vdivps(one, one, x.register)
    release(x)
    return Value(register: one, owned: true)
  }

  /// -1, 0 or 1; NaN stays.
  private func sign(_ x: Value) throws(ApusError) -> Value {
    let result = try allocate()
    // 1 with the sign of x, then x itself where x is a zero or NaN.
    assembler.vandps(result, x.register, constant(bits: 0x8000_0000))
    assembler.vorps(result, result, constant(1))
    try choose(result, .equal, x.register, constant(0), yes: x.register, no: result)
    try choose(result, .unordered, x.register, x.register, yes: x.register, no: result)
    release(x)
    return Value(register: result, owned: true)
  }

  /// `p = p * x + c` for each coefficient, highest power first; `p` starts as the first.
  private func horner(_ p: Vec, _ x: Vec, _ coefficients: [Double]) {
    load(Float(coefficients[0]).bitPattern, into: p)
    for c in coefficients.dropFirst() { assembler.vfmadd213ps(p, x, constant(c)) }
  }

  /// `x = exp(x)` in place, using three registers more.
  func exponential(_ x: Vec) throws(ApusError) {
    let a = assembler
    let n = try allocate()
    let p = try allocate()
    // Clamp; a NaN goes second and so survives.
    load(Float(89).bitPattern, into: n)
    a.vminps(x, n, x)
    load(Float(-104).bitPattern, into: n)
    a.vmaxps(x, n, x)
    // x = n log 2 + r with n whole; the high part of log 2 has few bits, so n times it is exact.
    a.vmulps(n, x, constant(1.442_695_040_888_963_4))
    a.vroundps(n, n, 0)
    load(Float(0.693_359_375).bitPattern, into: p)
    a.vfnmadd231ps(x, n, p)
    load(Float(-2.121_944_400_546_905_8e-4).bitPattern, into: p)
    a.vfnmadd231ps(x, n, p)
    horner(p, x, [
      1.381_314_257e-03, 8.369_419_269e-03, 4.166_845_685e-02, 1.666_651_479e-01, 0.5, 1, 1,
    ])
    if isa == .avx512 {
      a.vscalefps(x, p, n)
    } else {
      // 2^n as two factors, each of them a normal number.
      a.vcvtps2dq(n, n)
      a.vpsrad(x, n, 1)
      a.vpsubd(n, n, x)
      for half in [x, n] {
        a.vpaddd(half, half, constant(bits: 127))
        a.vpslld(half, half, 23)
      }
      a.vmulps(p, p, x)
      a.vmulps(x, p, n)
    }
    release(n)
    release(p)
  }

  /// A new register with log(x); uses three registers more.
  func logarithm(_ x: Vec) throws(ApusError) -> Vec {
    let a = assembler
    let e = try allocate()
    let f = try allocate()
    let p = try allocate()
    // Numbers too small to be normal are scaled up.
    a.vmulps(p, x, constant(8_388_608))
    try choose(f, .less, x, constant(bits: 0x0080_0000), yes: p, no: x)
    load(0, into: e)
    load(Float(23).bitPattern, into: p)
    try choose(p, .less, x, constant(bits: 0x0080_0000), yes: p, no: e)
    // f = 2^e m with m in [sqrt(1/2), sqrt 2).
    a.vpsubd(e, f, constant(bits: 0x3F35_04F3))
    a.vpsrad(e, e, 23)
    let m = try allocate()
    a.vpslld(m, e, 23)
    a.vpsubd(f, f, m)
    release(m)
    a.vsubps(f, f, constant(1))
    a.vcvtdq2ps(e, e)
    a.vsubps(e, e, p)
    horner(p, f, [
      6.747_698_439e-02, -1.167_751_709e-01, 1.188_871_254e-01, -1.240_534_102e-01,
      1.421_945_098e-01, -1.666_800_506e-01, 2.000_212_356e-01, -2.500_000_952e-01,
      3.333_331_254e-01,
    ])
    let square = try allocate()
    a.vmulps(square, f, f)
    a.vmulps(p, p, f)
    a.vmulps(p, p, square)
    let part = try load(-2.121_944_400_546_905_8e-4)
    a.vfmadd231ps(p, e, part)
    load(Float(0.5).bitPattern, into: part)
    a.vfnmadd231ps(p, square, part)
    a.vaddps(f, f, p)
    load(Float(0.693_359_375).bitPattern, into: part)
    a.vfmadd231ps(f, e, part)
    release(square)
    // Infinity and NaN give themselves, zero minus infinity, negative numbers NaN.
    try choose(f, .notLess, x, constant(.infinity), yes: x, no: f)
    load(Float(-Double.infinity).bitPattern, into: part)
    try choose(f, .equal, x, constant(0), yes: part, no: f)
    load(0x7FC0_0000, into: part)
    try choose(f, .less, x, constant(0), yes: part, no: f)
    release(part)
    release(e)
    release(p)
    return f
  }

  private func hyperbolicTangent(_ x: Value) throws(ApusError) -> Value {
    let a = assembler
    // Large: sign(x) (1 - 2 / (exp(2|x|) + 1)).
    let t = try allocate()
    a.vandps(t, x.register, constant(bits: 0x7FFF_FFFF))
    a.vaddps(t, t, t)
    try exponential(t)
    a.vaddps(t, t, constant(1))
    let u = try load(2)
    a.vdivps(t, u, t)
    load(Float(1).bitPattern, into: u)
    a.vsubps(t, u, t)
    a.vandps(u, x.register, constant(bits: 0x8000_0000))
    a.vorps(t, t, u)
    // Small: x + x z P(z), z = x^2.
    let p = try allocate()
    a.vmulps(u, x.register, x.register)
    horner(p, u, [
      -5.717_032_530e-03, 2.065_057_556e-02, -5.374_349_426e-02, 1.333_149_124e-01,
      -3.333_328_392e-01,
    ])
    a.vmulps(p, p, u)
    a.vfmadd213ps(p, x.register, x.register)
    a.vandps(u, x.register, constant(bits: 0x7FFF_FFFF))
    try choose(t, .less, u, constant(0.625), yes: p, no: t)
    release(u)
    release(p)
    release(x)
    return Value(register: t, owned: true)
  }

  private func errorFunction(_ x: Value) throws(ApusError) -> Value {
    isa == .avx512 ? try tabledErrorFunction(x) : try twoPartErrorFunction(x)
  }

  /// See `ErrorFunctionTable`.
  private func tabledErrorFunction(_ x: Value) throws(ApusError) -> Value {
    let a = assembler
    let r = try allocate()
    a.vandps(r, x.register, constant(bits: 0x7FFF_FFFF))
    let p = try load(Double(ErrorFunctionTable.end))
    a.vminps(r, p, r)
    // Adding 1.5 2^23 rounds to a whole number and leaves it in the lowest bits.
    let whole = 12_582_912.0
    let place = try load(whole)
    a.vfmadd231ps(place, r, constant(1 / ErrorFunctionTable.step))
    a.vsubps(p, place, constant(whole))
    a.vfnmadd231ps(r, p, constant(ErrorFunctionTable.step))
    let rows = ErrorFunctionTable.coefficients.map { row in
      a.constant(words: row.map(\.bitPattern))
    }
    let c = try allocate()
    a.vpermps(p, place, rows[0])
    for row in rows.dropFirst() {
      a.vpermps(c, place, row)
      a.vfmadd213ps(p, r, c)
    }
    // The sign of x.
    a.vandps(r, x.register, constant(bits: 0x8000_0000))
    a.vorps(p, p, r)
    for register in [r, place, c] { release(register) }
    release(x)
    return Value(register: p, owned: true)
  }

  private func twoPartErrorFunction(_ x: Value) throws(ApusError) -> Value {
    let a = assembler
    // Large: sign(x) (1 - exp(P(|x|))), where exp(P) is the complement.
    let u = try allocate()
    let t = try allocate()
    a.vandps(u, x.register, constant(bits: 0x7FFF_FFFF))
    load(Float(4).bitPattern, into: t)
    a.vminps(u, t, u)
    horner(t, u, [
      1.879_728_295e-04, -2.964_017_110e-03, 2.190_651_957e-02, -1.032_562_919e-01,
      -6.379_648_973e-01, -1.127_202_337e+00, -3.124_551_260e-04,
    ])
    release(u)
    try exponential(t)
    let p = try load(1)
    a.vsubps(t, p, t)
    let z = try allocate()
    a.vandps(z, x.register, constant(bits: 0x8000_0000))
    a.vorps(t, t, z)
    // Small: x P(z), z = x^2.
    a.vmulps(z, x.register, x.register)
    horner(p, z, [
      7.889_119_792e-05, -8.020_841_601e-04, 5.189_535_409e-03, -2.685_444_465e-02,
      1.128_360_018e-01, -3.761_262_714e-01, 1.283_791_66e-01,
    ])
    a.vfmadd213ps(p, x.register, x.register)
    try choose(t, .less, z, constant(1), yes: p, no: t)
    release(z)
    release(p)
    release(x)
    return Value(register: t, owned: true)
  }

  private func sigmoid(_ x: Value) throws(ApusError) -> Value {
    let a = assembler
    let t = try allocate()
    a.vxorps(t, x.register, constant(bits: 0x8000_0000))
    release(x)
    try exponential(t)
    let one = constant(1)
    a.vaddps(t, t, one)
    let u = try load(1)
    a.vdivps(t, u, t)
    release(u)
    return Value(register: t, owned: true)
  }

  /// max(x, 0) + log(1 + u) with u = exp(-|x|).
  private func softplus(_ x: Value) throws(ApusError) -> Value {
    let a = assembler
    let u = try allocate()
    a.vorps(u, x.register, constant(bits: 0x8000_0000))
    try exponential(u)
    let w = try allocate()
    a.vaddps(w, u, constant(1))
    // What rounding 1 + u lost: (u - (w - 1)) / w.
    let lost = try allocate()
    a.vsubps(lost, w, constant(1))
    a.vsubps(lost, u, lost)
    a.vdivps(lost, lost, w)
    release(u)
    let result = try logarithm(w)
    a.vaddps(result, result, lost)
    load(0, into: w)
    a.vmaxps(w, w, x.register)
    a.vaddps(result, result, w)
    release(w)
    release(lost)
    release(x)
    return Value(register: result, owned: true)
  }

  // MARK: Powers

  func power(_ a: ScalarExpr, _ b: ScalarExpr) throws(ApusError) -> Value {
    if case .const(let exponent) = b, let result = try power(a, constant: exponent) {
      return result
    }
    let (x, y) = try operands(a, b)
    let code = assembler
    let size = try allocate()
    code.vandps(size, x.register, constant(bits: 0x7FFF_FFFF))
    let r = try logarithm(size)
    code.vmulps(r, r, y.register)
    try exponential(r)
    let t = try allocate()
    let u = try allocate()
    // |x| of one to an infinite power: 0 times infinity above.
    load(Float(1).bitPattern, into: t)
    code.vandps(u, y.register, constant(bits: 0x7FFF_FFFF))
    try choose(u, .equal, u, constant(.infinity), yes: t, no: r)
    code.vandps(size, x.register, constant(bits: 0x7FFF_FFFF))
    try choose(r, .equal, size, t, yes: u, no: r)
    // An odd exponent keeps the sign of the base, that of zero and infinity too. Half of an odd number
    // has a fraction of one half; infinity minus infinity is not above zero.
    code.vroundps(size, y.register, 3)
    code.vmulps(t, size, constant(0.5))
    code.vroundps(u, t, 3)
    code.vsubps(t, t, u)
    code.vandps(t, t, constant(bits: 0x7FFF_FFFF))
    code.vandps(u, x.register, constant(bits: 0x8000_0000))
    code.vxorps(u, u, r)
    try choose(u, .greater, t, constant(0), yes: u, no: r)
    try choose(r, .equal, size, y.register, yes: u, no: r)
    // A finite negative base to a broken exponent is not a number.
    load(0x7FC0_0000, into: t)
    try choose(t, .equal, size, y.register, yes: r, no: t)
    try choose(t, .less, x.register, constant(0), yes: t, no: r)
    try choose(r, .equal, x.register, constant(-.infinity), yes: r, no: t)
    load(Float(1).bitPattern, into: u)
    try choose(r, .equal, y.register, constant(0), yes: u, no: r)
    try choose(r, .equal, x.register, u, yes: u, no: r)
    for register in [size, t, u] { release(register) }
    release(x)
    release(y)
    return Value(register: r, owned: true)
  }

  /// The power of one half, which unlike the square root is +0 for -0 and infinite for minus infinity.
  private func rootAsPower(_ x: Value) throws(ApusError) -> Value {
    let root = try allocate()
    assembler.vsqrtps(root, x.register)
    assembler.vaddps(root, root, constant(0))
    let infinity = try load(.infinity)
    try choose(root, .equal, x.register, constant(-.infinity), yes: infinity, no: root)
    release(infinity)
    release(x)
    return Value(register: root, owned: true)
  }

  /// Small whole exponents and square roots without logarithms.
  private func power(_ a: ScalarExpr, constant exponent: Double) throws(ApusError) -> Value? {
    if abs(exponent) == 0.5 {
      let root = try rootAsPower(try value(a))
      return exponent < 0 ? try reciprocal(root) : root
    }
    guard exponent == exponent.rounded(), abs(exponent) <= 16, exponent != 0 else { return nil }
    let x = try value(a)
    var remaining = Int(abs(exponent))
    var result: Vec?
    let base = try owned(x)
    while remaining > 0 {
      if remaining & 1 == 1 {
        if let result {
          assembler.vmulps(result, result, base)
        } else {
          let copy = try allocate()
          assembler.vmovups(copy, base)
          result = copy
        }
      }
      remaining >>= 1
      if remaining > 0 { assembler.vmulps(base, base, base) }
    }
    release(base)
    guard let result else { return nil }
    let product = Value(register: result, owned: true)
    return exponent < 0 ? try reciprocal(product) : product
  }
}
