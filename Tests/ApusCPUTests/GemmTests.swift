// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import Testing

import ApusCPU

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

@Suite struct GemmTests {
  private let pool = ThreadPool(threadCount: 2)

  /// A * B in double precision.
  private func reference(
    _ a: GuardedBuffer, _ b: GuardedBuffer, m: Int, n: Int, k: Int, lda: Int, ldb: Int
  ) -> [Double] {
    var result = [Double](repeating: 0, count: m * n)
    for row in 0..<m {
      for inner in 0..<k {
        let factor = Double(a[row * lda + inner])
        for column in 0..<n {
          result[row * n + column] += factor * Double(b[inner * ldb + column])
        }
      }
    }
    return result
  }

  private func packed(_ b: GuardedBuffer, k: Int, n: Int, ldb: Int, nr: Int) -> GuardedBuffer {
    let result = GuardedBuffer(count: PackedMatrix.byteCount(k: k, n: n, nr: nr) / 4)
    PackedMatrix.pack(b.pointer, rowStride: ldb, k: k, n: n, nr: nr, into: result.pointer)
    return result
  }

  @Test(arguments: testedISAs) func productsAtTileEdges(isa: ISA) throws {
    let sizes = [
      (1, 1, 1), (1, 5, 3), (2, 16, 4), (3, 17, 5), (6, 31, 7), (7, 64, 8), (13, 33, 9),
      (14, 32, 16), (15, 65, 33), (29, 100, 2), (49, 48, 130), (64, 1, 20), (5, 300, 3000),
      (33, 129, 3000),
    ]
    for (m, n, k) in sizes {
      for padding in [0, 3] {
        let lda = k + padding
        let a = GuardedBuffer.random((m - 1) * lda + k)
        let b = GuardedBuffer.random(k * n, seed: 2)
        let want = reference(a, b, m: m, n: n, k: k, lda: lda, ldb: n)
        for tile in [nil] + GemmTile.candidates(isa).map(Optional.some) {
          for direct in [false, true] {
            let plan = try GemmPlan(
              m: m, n: n, k: k, lda: lda, ldc: n + padding, ldb: direct ? n : nil, tile: tile,
              isa: isa)
            let c = GuardedBuffer(count: (m - 1) * (n + padding) + n) { _ in .nan }
            let right = direct ? b : packed(b, k: k, n: n, ldb: n, nr: plan.nr)
            plan.run(a: a.raw, b: right.raw, c: c.raw, pool: pool)
            var worst = 0.0
            for row in 0..<m {
              for column in 0..<n {
                let got = Double(c[row * (n + padding) + column])
                let error = abs(got - want[row * n + column])
                worst = error.isNaN ? .infinity : max(worst, error)
              }
            }
            #expect(worst < 1e-5 * Double(k).squareRoot() + 1e-6, "\(isa) \(m)x\(n)x\(k) \(plan.tile)")
            if padding > 0 && m > 1 { #expect(c[n].isNaN) }
          }
        }
      }
    }
  }

  @Test(arguments: testedISAs) func epiloguesFollowTheExpression(isa: ISA) throws {
    let sum = ScalarExpr.input(0) * .input(1) + .input(2) + .input(3)
    let relu = ScalarExpr.max(.input(0) + .input(1), .const(0))
    let gelu = ScalarExpr.binary(
      .multiply, .input(0) * .const(0.5),
      .const(1) + .unary(.errorFunction, .input(0) * .const(0.70710678)))
    let cases: [(ScalarExpr, [EpilogueOperand], (Double, Double, Double, Double) -> Double)] = [
      (sum, [.scalar, .perColumn, .full], { $0 * $1 + $2 + $3 }),
      (relu, [.perColumn], { x, y, _, _ in max(x + y, 0) }),
      (gelu, [], { x, _, _, _ in x * 0.5 * (1 + erf(x * 0.70710678)) }),
      (
        gelu.substituting { _ in .input(0) + .input(1) } + .input(2), [.perColumn, .full],
        { x, y, z, _ in (x + y) * 0.5 * (1 + erf((x + y) * 0.70710678)) + z }
      ),
    ]
    for (m, n, k) in [(14, 32, 8), (15, 37, 40), (3, 7, 2000), (30, 64, 2000), (14, 9, 5)] {
      let a = GuardedBuffer.random(m * k)
      let b = GuardedBuffer.random(k * n, seed: 2)
      let product = reference(a, b, m: m, n: n, k: k, lda: k, ldb: n)
      for tile in [nil] + GemmTile.candidates(isa).map(Optional.some) {
        for (expression, kinds, exact) in cases {
          let plan = try GemmPlan(
            m: m, n: n, k: k, lda: k, ldc: n, tile: tile, isa: isa, epilogue: expression,
            operands: kinds)
          let extra = kinds.enumerated().map { index, kind in
            let count = kind == .scalar ? 1 : kind == .perColumn ? n : m * n
            return GuardedBuffer.random(count, seed: UInt64(index + 5))
          }
          let c = GuardedBuffer(count: m * n) { _ in .nan }
          let right = packed(b, k: k, n: n, ldb: n, nr: plan.nr)
          plan.run(
            a: a.raw, b: right.raw, c: c.raw, operands: extra.map { UnsafeRawPointer($0.raw) },
            pool: pool)
          var worst = 0.0
          for index in 0..<m * n {
            var values = [product[index], 0, 0, 0]
            for (number, kind) in kinds.enumerated() {
              let place = kind == .scalar ? 0 : kind == .perColumn ? index % n : index
              values[number + 1] = Double(extra[number][place])
            }
            let error = abs(Double(c[index]) - exact(values[0], values[1], values[2], values[3]))
            worst = error.isNaN ? .infinity : max(worst, error)
          }
          #expect(worst < 2e-5 * Double(k).squareRoot(), "\(isa) \(m)x\(n)x\(k) \(plan.tile)")
        }
      }
    }
  }

  @Test(arguments: testedISAs) func batchesLieAnywhere(isa: ISA) throws {
    // Heads of attention inside wider rows, B shared between two of them.
    let (m, n, k, lda, ldb, ldc) = (19, 21, 13, 50, 64, 48)
    let batch = [
      GemmPlan.BatchMember(a: 0, b: 0, c: 0), GemmPlan.BatchMember(a: 13, b: 21, c: 21),
      GemmPlan.BatchMember(a: 26, b: 0, c: m * ldc),
    ]
    let a = GuardedBuffer.random((m - 1) * lda + 26 + k)
    let b = GuardedBuffer.random((k - 1) * ldb + 21 + n, seed: 2)
    let other = GuardedBuffer.random((2 * m - 1) * ldc + n, seed: 3)
    let plan = try GemmPlan(
      m: m, n: n, k: k, lda: lda, ldc: ldc, ldb: ldb, isa: isa, epilogue: .input(0) + .input(1),
      operands: [.full], batch: batch)
    let c = GuardedBuffer(count: other.count) { _ in .nan }
    plan.run(a: a.raw, b: b.raw, c: c.raw, operands: [UnsafeRawPointer(other.raw)], pool: pool)
    for member in batch {
      for row in 0..<m {
        for column in 0..<n {
          let place = member.c + row * ldc + column
          var want = other[place]
          for inner in 0..<k {
            want += a[member.a + row * lda + inner] * b[member.b + inner * ldb + column]
          }
          #expect(abs(c[place] - want) < 1e-5)
        }
      }
    }
  }

  @Test func resultsDoNotDependOnTheThreadCount() throws {
    guard let isa = testedISAs.first else { return }
    let (m, n, k) = (200, 200, 300)
    let a = GuardedBuffer.random(m * k)
    let b = GuardedBuffer.random(k * n, seed: 2)
    let plan = try GemmPlan(m: m, n: n, k: k, lda: k, ldc: n, isa: isa)
    let right = packed(b, k: k, n: n, ldb: n, nr: plan.nr)
    let one = GuardedBuffer(count: m * n)
    let many = GuardedBuffer(count: m * n)
    plan.run(a: a.raw, b: right.raw, c: one.raw, pool: ThreadPool(threadCount: 1))
    plan.run(a: a.raw, b: right.raw, c: many.raw, pool: ThreadPool(threadCount: 5))
    #expect((0..<m * n).allSatisfy { one[$0] == many[$0] })
  }
}
