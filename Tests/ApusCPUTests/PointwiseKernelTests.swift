// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import Testing

import ApusCPU

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// The families this machine can run.
let testedISAs = CPUFeatures.host.families.filter { $0 != .portable }

/// How products of bytes are computed with each of them: AVX-512 has both ways.
let byteProducts: [(isa: ISA, kind: ProductKind)] = testedISAs.flatMap { isa -> [(ISA, ProductKind)] in
  let best = ProductKind.bytes(isa)
  return isa == .avx512 && !best.widens ? [(isa, best), (isa, .widenedInt8)] : [(isa, best)]
}

@Suite struct PointwiseKernelTests {
  private let pool = ThreadPool(threadCount: 2)
  private let x = ScalarExpr.input(0)

  private func apply(_ expression: ScalarExpr, _ values: [Float], _ isa: ISA) throws -> [Float] {
    let kernel = try PointwiseKernel(expression, operands: [.contiguous], isa: isa)
    let input = GuardedBuffer(count: values.count) { values[$0] }
    let output = GuardedBuffer(count: values.count)
    var address = UnsafeRawPointer(input.raw)
    kernel.run(&address, result: output.raw, count: values.count, pool: pool)
    return (0..<values.count).map { output[$0] }
  }

  /// Distance in units of the last place of the exact value.
  private func ulps(_ got: Float, _ exact: Double) -> Double {
    let rounded = Float(exact)
    if got.isNaN && rounded.isNaN || got == rounded { return 0 }
    if !got.isFinite || !rounded.isFinite { return .infinity }
    return abs(Double(got) - exact) / Double(max(rounded.magnitude.ulp, Float.leastNormalMagnitude.ulp))
  }

  private static let functions: [(UnaryFunction, Double, @Sendable (Double) -> Double)] = [
    (.exponential, 2, { exp($0) }),
    (.logarithm, 2, { log($0) }),
    (.hyperbolicTangent, 3, { tanh($0) }),
    (.errorFunction, 3, { erf($0) }),
    (.sigmoid, 3, { 1 / (1 + exp(-$0)) }),
    (.softplus, 4, { max($0, 0) + log1p(exp(-abs($0))) }),
    (.reciprocal, 1, { 1 / $0 }),
    (.reciprocalSquareRoot, 2, { 1 / $0.squareRoot() }),
    (.squareRoot, 0.51, { $0.squareRoot() }),
    (.floor, 0, { $0.rounded(.down) }),
    (.ceiling, 0, { $0.rounded(.up) }),
    (.round, 0, { $0.rounded(.toNearestOrEven) }),
    (.truncate, 0, { $0.rounded(.towardZero) }),
    (.negate, 0, { -$0 }),
    (.absolute, 0, { abs($0) }),
    (.sign, 0, { $0.isNaN ? $0 : $0 > 0 ? 1 : $0 < 0 ? -1 : 0 }),
    (.isNaN, 0, { $0.isNaN ? 1 : 0 }),
    (.isInfinite, 0, { $0.isInfinite ? 1 : 0 }),
    (.logicalNot, 0, { $0 == 0 ? 1 : 0 }),
  ]

  @Test(arguments: testedISAs) func functionsAreAccurate(isa: ISA) throws {
    var values: [Float] = [
      0, -0.0, .infinity, -.infinity, .nan, 1, -1, 0.5, 1.5, 2.5, -0.5, -2.5, Float(bitPattern: 99), -Float(bitPattern: 99), 3e38,
      88.7, 88.8, -87.3, -100, -103, -104, 1e-30, 8_388_609, 0.625, 0.98, 3.99, 4.01, 1.0000001,
    ]
    for step in 0..<40_000 { values.append(Float(step - 20_000) * 0.005217) }
    var bits: UInt32 = 1
    while bits < 0x7F80_0000 {
      values.append(Float(bitPattern: bits))
      values.append(-Float(bitPattern: bits))
      bits += 40_507
    }
    for (function, bound, exact) in Self.functions {
      let got = try apply(.unary(function, x), values, isa)
      var worst = 0.0
      var place: Float = 0
      for (index, value) in values.enumerated() {
        // The logistic function below the smallest normal number is flushed.
        if function == .sigmoid && value < -87 { continue }
        let error = ulps(got[index], exact(Double(value)))
        if error > worst { (worst, place) = (error, value) }
      }
      print("\(isa) \(function.rawValue): \(worst) ulp at \(place)")
      #expect(worst <= bound, "\(isa) \(function) at \(place)")
    }
  }

  @Test(arguments: testedISAs) func powersFollowTheRules(isa: ISA) throws {
    let kernel = try PointwiseKernel(
      .binary(.power, .input(0), .input(1)), operands: [.contiguous, .contiguous], isa: isa)
    let bases: [Float] = [
      0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 10, -3, .infinity, -.infinity, 1.7, .nan,
    ]
    let exponents: [Float] = [
      0, 1, 2, 3, -1, -2, -3, 0.5, -0.5, 2.5, 7, 1e9, .infinity, -.infinity, .nan,
    ]
    let count = bases.count * exponents.count
    let a = GuardedBuffer(count: count) { bases[$0 / exponents.count] }
    let b = GuardedBuffer(count: count) { exponents[$0 % exponents.count] }
    let result = GuardedBuffer(count: count)
    kernel.run(
      [UnsafeRawPointer(a.raw), UnsafeRawPointer(b.raw)], result: result.raw, count: count,
      pool: pool)
    for index in 0..<count {
      let exact = pow(Double(a[index]), Double(b[index]))
      #expect(ulps(result[index], exact) < 40, "pow(\(a[index]), \(b[index])) = \(result[index])")
      #expect(exact.isNaN || result[index].sign == exact.sign, "pow(\(a[index]), \(b[index]))")
    }
    for exponent in [2.0, 3, -1, -2, 0.5, -0.5, 5] {
      let some: [Float] = [1.25, 3, 0.1, 0, -0.0, -2, .infinity, -.infinity]
      let got = try apply(.binary(.power, x, .const(exponent)), some, isa)
      for (value, base) in zip(got, some) {
        let exact = pow(Double(base), exponent)
        #expect(ulps(value, exact) < 6, "pow(\(base), \(exponent)) = \(value)")
        #expect(exact.isNaN || value.sign == exact.sign, "pow(\(base), \(exponent)) = \(value)")
      }
    }
  }

  @Test(arguments: testedISAs) func compositionsAgree(isa: ISA) throws {
    let gelu = x * .const(0.5) * (.const(1) + .unary(.errorFunction, x * .const(0.5.squareRoot())))
    let hardSwish =
      x * ScalarExpr.max(.const(0), .min(.const(1), x * .const(1.0 / 6) + .const(0.5)))
    let e = ScalarExpr.unary(.exponential, x)
    let shared = (e - .const(1)) / (e + .const(1)) + e * e
    // The inner occurrence is computed upon while the outer one waits.
    let bent = ScalarExpr.unary(.hyperbolicTangent, x)
    let waiting = bent * (bent * .const(0.25) + .const(0.5))
    let chosen = ScalarExpr.select(.less(x, .const(0)), .const(0.1) * x, x)
    let logic = ScalarExpr.select(
      .binary(.logicalAnd, .less(x, .const(0.5)), .unary(.logicalNot, .less(x, .const(-0.5)))),
      .const(3), .const(-0.25) - x)
    let cases: [(ScalarExpr, (Double) -> Double)] = [
      (gelu, { $0 * 0.5 * (1 + erf($0 * 0.5.squareRoot())) }),
      (hardSwish, { $0 * max(0, min(1, $0 / 6 + 0.5)) }),
      (shared, { (exp($0) - 1) / (exp($0) + 1) + exp($0) * exp($0) }),
      (waiting, { tanh($0) * (tanh($0) * 0.25 + 0.5) }),
      (chosen, { $0 < 0 ? 0.1 * $0 : $0 }),
      (logic, { $0 < 0.5 && !($0 < -0.5) ? 3 : -0.25 - $0 }),
    ]
    for count in [1, 7, 8, 9, 15, 16, 17, 31, 33, 40_000] {
      let values = (0..<count).map { Float($0 % 801 - 400) * 0.01 }
      for (expression, exact) in cases {
        let got = try apply(expression, values, isa)
        for index in 0..<count {
          let want = exact(Double(values[index]))
          #expect(abs(Double(got[index]) - want) <= 2e-6 * max(1, abs(want)))
        }
      }
    }
    let propagated = try apply(.max(x, .const(0)), [.nan, -1, 2], isa)
    #expect(propagated[0].isNaN && propagated[1] == 0 && propagated[2] == 2)
  }

  @Test(arguments: testedISAs) func operandsAreIndexedByKind(isa: ISA) throws {
    for (rows, period) in [(3, 5), (10, 64), (2, 20_001), (5, 1)] {
      let kernel = try PointwiseKernel(
        .input(0) * .input(1) + .max(.input(2), .input(3)),
        operands: [.contiguous, .period(period), .scalar, .contiguous], isa: isa)
      let count = rows * period
      let a = GuardedBuffer.random(count)
      let b = GuardedBuffer.random(period, seed: 2)
      let c = GuardedBuffer(count: 1) { _ in 0.25 }
      let d = GuardedBuffer.random(count, seed: 3)
      let addresses = [a, b, c, d].map { UnsafeRawPointer($0.raw) }
      kernel.run(addresses, result: d.raw, count: count, pool: pool)
      let original = GuardedBuffer.random(count, seed: 3)
      for index in 0..<count {
        let want = a[index] * b[index % period] + max(0.25, original[index])
        #expect(abs(d[index] - want) < 1e-6)
      }
    }
  }

  /// Bytes come and go one by one at the end, where there are no masks for them; the result may lie where an
  /// operand does.
  @Test(arguments: testedISAs) func bytesAreReadAndWritten(isa: ISA) throws {
    for type in [DataType.uint8, .int8] {
      let (low, high) = (type.integerRange.lowerBound, type.integerRange.upperBound)
      let x = ScalarExpr.cast(.input(0), .float32) * .const(0.5) + .input(1)
      let quantization = ScalarQuantization(steps: x, zeroPoint: 3, type: type)
      for (rows, period) in [(1, 1), (1, 7), (1, 8), (1, 23), (3, 64), (5, 13), (2, 20_001)] {
        let count = rows * period
        let values = (0..<count).map { Int64($0) * 37 % (high - low + 1) + low }
        for isPeriodic in [true, false] {
          let bytes = try GuardedTensor(Tensor(values, type, shape: [count]))
          let shift = GuardedBuffer.random(isPeriodic ? period : count, seed: 4)
          let kernel = try PointwiseKernel(
            quantization.expression, operands: [.contiguous, isPeriodic ? .period(period) : .contiguous],
            types: PointwiseKernel.Types(operands: [type, .float32], result: type), isa: isa)
          let addresses = [UnsafeRawPointer(bytes.raw), UnsafeRawPointer(shift.raw)]
          kernel.run(addresses, result: bytes.raw, count: count, pool: pool)
          let got = bytes.tensor.doubles()
          let wrong = (0..<count).first { index in
            let steps = (Float(values[index]) * 0.5 + shift[index % shift.count]).rounded(.toNearestOrEven)
            let want = min(Double(high), max(Double(low), Double(steps) + 3))
            return got[index] != want
          }
          #expect(wrong == nil, "\(type) \(count) of \(period) at \(wrong ?? -1)")
        }
      }
    }
  }

  @Test func unknownFunctionsAreRefused() {
    #expect(throws: ApusError.self) {
      _ = try PointwiseKernel(.unary(.arcSine, .input(0)), operands: [.contiguous], isa: .avx2)
    }
    var deep = ScalarExpr.input(0)
    func tree(_ depth: Int) -> ScalarExpr {
      depth == 0
        ? .input(0) * .const(Double.random(in: 0..<1))
        : .binary(.divide, tree(depth - 1), tree(depth - 1))
    }
    deep = tree(15)
    #expect(throws: ApusError.self) {
      _ = try PointwiseKernel(deep, operands: [.contiguous], isa: .avx2)
    }
  }
}
