// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Products with weights of four bits against the operator, around the edges of tiles, panels, words and
/// blocks.
@Suite(.enabled(if: CPUDescription.fastTypes.contains(.uint4), "needs AVX-512"))
struct FourBitWeightsTests {
  private let pool = ThreadPool(threadCount: 2)

  private struct Weights {
    let numbers: Tensor
    let scales: Tensor
    let zeros: Tensor?

    init(k: Int, n: Int, block: Int, half: Bool, zeros hasZeros: Bool) throws {
      var generator = SeededGenerator(seed: UInt64(k * 1000 + n))
      let count = (k + block - 1) / block * n
      numbers = try Tensor(
        (0..<k * n).map { _ in Int64.random(in: 0...15, using: &generator) }, .uint4, shape: [k, n])
      scales = try Tensor(
        (0..<count).map { _ in Double.random(in: -0.2..<0.2, using: &generator) },
        half ? .float16 : .float32, shape: [count / n, n])
      zeros =
        hasZeros
        ? try Tensor(
          (0..<count).map { _ in Int64.random(in: 0...15, using: &generator) }, .uint8,
          shape: [count / n, n]) : nil
    }
  }

  /// Runs a plan and compares with the operator and an epilogue in double precision.
  private func check(
    _ shape: NibbleProductPlan.Shape, epilogue: ScalarExpr = .input(0),
    extras: [EpilogueOperand] = [], result: DataType = .float32,
    _ wanted: (_ sum: Double, _ extras: [Double]) -> Double = { sum, _ in sum }
  ) throws {
    let (m, n, k) = (shape.m, shape.n, shape.k)
    let weights = try Weights(
      k: k, n: n, block: shape.block, half: shape.hasHalfScales, zeros: shape.hasZeros)
    let a = try GuardedTensor(
      Tensor((0..<m * k).map { Float(($0 * 37) % 101) / 50 - 1 }, shape: [m, k]))
    let operands = extras.indices.map { index in
      let count = extras[index] == .scalar ? 1 : extras[index] == .perColumn ? n : m * n
      return GuardedBuffer.random(count, seed: UInt64(index + 7))
    }
    let plan = try NibbleProductPlan(
      shape, epilogue: epilogue, extras: extras, types: ProductTypes(.float32, result: result))
    let words = try GuardedTensor(shape.packing.pack(weights.numbers))
    let scales = try GuardedTensor(shape.packingOfScales.pack(weights.scales))
    let zeros = try weights.zeros.map { try GuardedTensor(shape.packingOfScales.pack($0)) }
    let c = try GuardedTensor(Tensor(result, shape: [m, n]))
    let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
    let addresses = operands.map { UnsafeRawPointer($0.raw) }
    addresses.withUnsafeBufferPointer { addresses in
      plan.run(
        NibbleProductPlan.Operands(
          a: a.raw, words: words.raw, scales: scales.raw, zeros: zeros.map { UnsafeRawPointer($0.raw) },
          c: c.raw, extras: addresses.baseAddress, workspace: workspace.raw), pool: pool)
    }
    let reference = try BlockQuantizedMatMul(block: shape.block).evaluate(
      [a.tensor, weights.numbers, weights.scales, weights.zeros].map { $0.map { .tensor($0) } })
    let sums = try #require(reference[0].tensor).doubles()
    let largest = sums.reduce(0.01) { max($0, abs($1)) }
    let step = result == .float32 ? 4e-6 * max(1, Double(k).squareRoot() / 8) : 1.0 / 128
    var worst = 0.0
    for (index, got) in c.tensor.doubles().enumerated() {
      let values = zip(extras, operands).map { kind, buffer in
        Double(buffer[kind == .scalar ? 0 : kind == .perColumn ? index % n : index])
      }
      let error = abs(got - wanted(sums[index], values))
      worst = error.isNaN ? .infinity : max(worst, error)
    }
    #expect(worst <= step * (largest + 2), "\(shape): \(worst) of \(largest)")
  }

  private static let sizes = [
    (1, 1, 8), (1, 16, 32), (1, 17, 33), (1, 65, 40), (2, 64, 31), (3, 100, 64), (4, 33, 100),
    (5, 130, 1030), (7, 48, 257), (13, 63, 96), (30, 64, 520), (29, 20, 7), (230, 70, 1100),
  ]

  @Test(arguments: [8, 32, 128], [0, 1, 2, 4]) func sizesAndTails(block: Int, atOnce: Int) throws {
    for (m, n, k) in Self.sizes {
      for vectors in 1...4 where vectors >= atOnce {
        for (half, zeros) in [(false, false), (true, false), (false, true), (true, true)] {
          try check(
            NibbleProductPlan.Shape(
              m: m, n: n, k: k, block: min(block, (k + 7) / 8 * 8), vectors: vectors, vectorsAtOnce: atOnce,
              hasHalfScales: half, hasZeros: zeros))
        }
      }
    }
  }

  @Test(arguments: [0, 1, 4]) func epilogues(atOnce: Int) throws {
    for (m, n, k) in [(1, 70, 96), (4, 129, 100), (20, 64, 1100)] {
      let shape = NibbleProductPlan.Shape(
        m: m, n: n, k: k, block: 32, vectors: 4, vectorsAtOnce: atOnce, hasHalfScales: true)
      let sum = ScalarExpr.input(0)
      try check(shape, epilogue: .max(.const(0), sum + .input(1)), extras: [.perColumn]) { sum, extras in
        max(0, sum + extras[0])
      }
      try check(shape, epilogue: sum * .input(1) + .input(2), extras: [.scalar, .full]) { sum, extras in
        sum * extras[0] + extras[1]
      }
      try check(
        shape, epilogue: sum + .input(1) + .input(2), extras: [.perColumn, .full], result: .bfloat16
      ) { sum, extras in sum + extras[0] + extras[1] }
    }
  }

  @Test func packing() throws {
    for (k, n, vectors) in [(1, 1, 1), (8, 16, 1), (13, 40, 2), (64, 130, 4)] {
      let numbers = try Weights(k: k, n: n, block: 8, half: false, zeros: false).numbers
      let layout = NibbleProductPlan.Shape(
        m: 1, n: n, k: k, block: 8, vectors: vectors).packing
      let packed = try layout.pack(numbers)
      #expect(packed.byteCount == (k + 7) / 8 * layout.panelCount * vectors * 64)
      #expect(try layout.unpack(packed, .uint4, shape: [k, n]).integers() == numbers.integers())
    }
    let wrong = PackedLayout(batch: 1, rows: 4, columns: 4, width: 16)
    #expect(throws: ApusError.self) { try wrong.pack(Tensor(.uint4, shape: [4, 4])) }
  }
}
