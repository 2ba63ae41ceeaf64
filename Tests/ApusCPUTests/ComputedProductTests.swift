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

/// Products of two computed matrices of narrow elements, around the edges of words, vectors and panels.
@Suite(
  .enabled(
    if: CPUFeatures.host.avx512VNNI && CPUFeatures.host.avx512BF16 && ISA.current == .avx512))
struct ComputedProductTests {
  private let pool = ThreadPool(threadCount: 2)

  private func random(_ type: DataType, _ shape: [Int], _ seed: UInt64) throws -> Tensor {
    var generator = SeededGenerator(seed: seed)
    let count = shape.reduce(1, *)
    if type.isInteger {
      return try Tensor(
        (0..<count).map { _ in Int64.random(in: type.integerRange, using: &generator) }, type,
        shape: shape)
    }
    return try Tensor(
      (0..<count).map { _ in Double.random(in: -1..<1, using: &generator) }, type, shape: shape)
  }

  /// Multiplies with every tile and compares with the reference.
  private func check(
    _ a: Tensor, _ b: Tensor, _ op: MatMul, tolerance: Double, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let (count, m, k) = (a.shape[0], a.shape[1], a.shape[2])
    let n = op.transposesRight ? b.shape[1] : b.shape[2]
    let want = try #require(try op.evaluate([.tensor(a), .tensor(b)]).first?.tensor)
    let left = try GuardedTensor(a)
    let right = try GuardedTensor(b)
    var shape = ComputedProductPlan.Shape(
      m: m, n: n, k: k, transposesRight: op.transposesRight,
      batch: (0..<count).map { GemmPlan.BatchMember(a: $0 * m * k, b: $0 * n * k, c: $0 * m * n) })
    shape.leftZero = op.leftZero
    shape.rightZero = op.rightZero
    shape.rightIsUnsigned = b.dataType == .uint8
    let kind: ProductKind = a.dataType.isInteger ? .int8 : .bfloat16
    for tile in GemmTile.candidates(.avx512) {
      let plan = try ComputedProductPlan(shape, tile: tile, types: ProductTypes(kind))
      let c = try GuardedTensor(Tensor(kind.sumType, shape: want.shape))
      let scratch = GuardedBuffer(count: (plan.workspaceByteCount + 3) / 4)
      plan.run(
        a: left.raw, b: right.raw, c: c.raw, operands: nil, workspace: scratch.raw, pool: pool)
      var worst = (error: 0.0, index: 0)
      for (index, (x, y)) in zip(c.tensor.doubles(), want.doubles()).enumerated() {
        if abs(x - y) > worst.error { worst = (abs(x - y), index) }
      }
      #expect(
        worst.error <= tolerance,
        "\(a.type) @ \(b.type) \(op.attributes) \(tile): element \(worst.index) is off by \(worst.error)",
        sourceLocation: sourceLocation)
    }
  }

  @Test(arguments: [
    [1, 1, 1, 1], [2, 3, 17, 4], [1, 5, 16, 3], [3, 7, 33, 64], [2, 13, 65, 70], [2, 20, 64, 197],
    [1, 29, 130, 129], [4, 2, 15, 66], [3, 19, 8, 19], [2, 9, 40, 39],
  ])
  func sumsOfBytesAreExact(_ sizes: [Int]) throws {
    let (count, m, n, k) = (sizes[0], sizes[1], sizes[2], sizes[3])
    let a = try random(.uint8, [count, m, k], 1)
    for type in [DataType.uint8, .int8] {
      for (left, right) in [(0, 0), (0, 128), (7, 0), (128, 119), (255, 1)] {
        let right = type == .int8 ? right / 2 - 30 : right
        for transposed in [false, true] where !transposed || k % 4 == 0 {
          try check(
            a, random(type, transposed ? [count, n, k] : [count, k, n], 2),
            MatMul(
              sumType: .int32, leftZero: left, rightZero: right, transposesRight: transposed),
            tolerance: 0)
        }
      }
    }
  }

  @Test(arguments: [[1, 1, 1, 1], [2, 3, 17, 2], [3, 7, 33, 64], [2, 13, 65, 71], [1, 29, 130, 128], [3, 19, 8, 19]])
  func shortFloatsAreMultiplied(_ sizes: [Int]) throws {
    let (count, m, n, k) = (sizes[0], sizes[1], sizes[2], sizes[3])
    for transposed in [false, true] where !transposed || k % 2 == 0 {
      try check(
        random(.bfloat16, [count, m, k], 1),
        random(.bfloat16, transposed ? [count, n, k] : [count, k, n], 2),
        MatMul(sumType: .float32, transposesRight: transposed), tolerance: 2e-5)
    }
  }
}
