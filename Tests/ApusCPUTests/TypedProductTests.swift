// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import ApusTestSupport
import Testing

/// Products of narrow types, around the edges of words, tiles and panels.
@Suite struct TypedProductTests {
  private let pool = ThreadPool(threadCount: 2)
  private func integers(_ type: DataType, _ shape: [Int]) throws -> Tensor {
    var generator = SeededGenerator(seed: UInt64(shape.reduce(1, *)) + 7)
    let range = type == .int32 ? -20000...20000 : type.integerRange
    let values = (0..<shape.reduce(1, *)).map { _ in Int64.random(in: range, using: &generator) }
    return try Tensor(values, type, shape: shape)
  }

  private func floats(_ type: DataType, _ shape: [Int], seed: UInt64 = 3) throws -> Tensor {
    var generator = SeededGenerator(seed: seed)
    let values = (0..<shape.reduce(1, *)).map { _ in Double.random(in: -1..<1, using: &generator) }
    return try Tensor(values, type, shape: shape)
  }

  private static let sizes = [
    (1, 1, 1), (1, 5, 3), (2, 16, 4), (3, 17, 5), (7, 64, 8), (13, 33, 9), (14, 32, 16),
    (15, 65, 34), (29, 100, 2), (37, 50, 48), (66, 24, 19), (49, 48, 130), (5, 300, 3000), (33, 129, 2049),
  ]

  /// No tile, so that one is chosen, and every kind of tile for sums of so many words.
  private func tiles(_ isa: ISA, _ kind: ProductKind, words: Int) -> [GemmTile?] {
    [nil] + GemmTile.candidates(isa, kind) + GemmTile.overlapping(isa, ProductTypes(kind), words: words, results: .max)
  }

  private func packed(_ b: Tensor, _ plan: GemmPlan, _ kind: ProductKind) throws -> GuardedTensor {
    try GuardedTensor(
      PackedLayout(
        batch: 1, rows: b.shape[0], columns: b.shape[1], width: plan.nr,
        interleave: kind.interleave
      ).pack(b))
  }

  /// `sum over k of a * b`, exactly.
  private func reference(_ a: Tensor, _ b: Tensor) -> [Double] {
    let (m, k, n) = (a.shape[0], a.shape[1], b.shape[1])
    let (x, y) = (a.doubles(), b.doubles())
    var result = [Double](repeating: 0, count: m * n)
    for row in 0..<m {
      for inner in 0..<k {
        for column in 0..<n { result[row * n + column] += x[row * k + inner] * y[inner * n + column] }
      }
    }
    return result
  }

  @Test(arguments: byteProducts) func sumsOfBytesAreExact(isa: ISA, kind: ProductKind) throws {
    for (m, n, k) in Self.sizes {
      let a = try GuardedTensor(integers(.uint8, [m, k]))
      let b = try integers(.int8, [k, n])
      let want = reference(a.tensor, b)
      for tile in tiles(isa, kind, words: (k + kind.interleave - 1) / kind.interleave) {
        let plan = try GemmPlan(
          m: m, n: n, k: k, lda: k, ldc: n, tile: tile, isa: isa,
          types: ProductTypes(kind))
        let c = try GuardedTensor(Tensor(.int32, shape: [m, n]))
        let scratch = GuardedBuffer(count: plan.workspaceByteCount / 4)
        let right = try packed(b, plan, kind)
        plan.run(
          a: a.raw, b: right.raw, c: c.raw, workspace: scratch.raw, pool: pool)
        #expect(c.tensor.doubles() == want, "\(m)x\(n)x\(k) \(plan.tile)")
      }
    }
  }

  @Test(arguments: byteProducts)
  func bytesAreScaledAddedAndRoundedBehindTheSums(isa: ISA, kind: ProductKind) throws {
    let sum = ScalarExpr.cast(.input(0) + .input(1), .float32) * .input(2)
    let residual = (ScalarExpr.cast(.input(3), .float32) - .const(12)) * .const(0.25)
    for (m, n, k) in Self.sizes {
      let a = try GuardedTensor(integers(.uint8, [m, k]))
      let b = try integers(.int8, [k, n])
      let bias = try GuardedTensor(integers(.int32, [n]))
      let scale = try GuardedTensor(
        Tensor(floats(.float32, [n]).doubles().map { abs($0) * 1e-3 / Double(k) }, .float32, shape: [n]))
      let other = try GuardedTensor(integers(.uint8, [m, n]))
      let sums = reference(a.tensor, b)
      let (biases, scales, others) = (
        bias.tensor.doubles(), scale.tensor.floats(), other.tensor.doubles()
      )
      for (type, zero, fits) in [
        (DataType.uint8, 0, false), (.uint8, 17, false), (.int8, 0, false), (.int8, -9, false),
        (.uint8, 0, true), (.uint8, 17, true), (.int8, -9, true),
      ] {
        let quantization = ScalarQuantization(
          steps: .max(.const(0), sum + residual) / .const(0.125), zeroPoint: zero, type: type)
        for tile in tiles(isa, kind, words: (k + kind.interleave - 1) / kind.interleave) {
          var types = ProductTypes(kind, result: type, operands: [.int32, .float32, .uint8])
          types.stepsFit = fits
          let plan = try GemmPlan(
            m: m, n: n, k: k, lda: k, ldc: n, tile: tile, isa: isa,
            epilogue: quantization.expression, operands: [.perColumn, .perColumn, .full],
            types: types)
          let c = try GuardedTensor(Tensor(type, shape: [m, n]))
          let scratch = GuardedBuffer(count: plan.workspaceByteCount / 4)
          let right = try packed(b, plan, kind)
          plan.run(
            a: a.raw, b: right.raw, c: c.raw,
            operands: [
              UnsafeRawPointer(bias.raw), UnsafeRawPointer(scale.raw), UnsafeRawPointer(other.raw),
            ],
            workspace: scratch.raw, pool: pool)
          let got = c.tensor.doubles()
          var worst = 0.0
          for index in sums.indices {
            let sum = Float(sums[index] + biases[index % n]) * scales[index % n]
            let y: Float = sum + (Float(others[index]) - 12) * 0.25
            let steps = Double((max(0, y) / 0.125).rounded(.toNearestOrEven))
            let low = Double(quantization.range.lowerBound)
            let high = Double(quantization.range.upperBound)
            let exact = min(high, max(low, steps)) + Double(zero)
            worst = max(worst, abs(got[index] - exact))
          }
          // A number next to a tie may fall to the other side.
          #expect(worst <= 1, "\(type) \(zero) \(fits) \(m)x\(n)x\(k) \(plan.tile)")
        }
      }
    }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16)) func shortFloatsAreSummedInSinglePrecision() throws {
    for (m, n, k) in Self.sizes {
      let a = try GuardedTensor(floats(.bfloat16, [m, k]))
      let b = try floats(.bfloat16, [k, n], seed: 4)
      let bias = try GuardedTensor(floats(.float32, [n], seed: 6))
      let other = try GuardedTensor(floats(.bfloat16, [m, n], seed: 8))
      let want = reference(a.tensor, b)
      let (biases, others) = (bias.tensor.doubles(), other.tensor.doubles())
      let y = ScalarExpr.max(.const(0), .input(0) + .input(1) + .cast(.input(2), .float32))
      for result in [DataType.float32, .bfloat16] {
        for tile in tiles(.avx512, .bfloat16, words: (k + 1) / 2) {
          let plan = try GemmPlan(
            m: m, n: n, k: k, lda: k, ldc: n, tile: tile, isa: .avx512,
            epilogue: result == .float32 ? y : .cast(y, result), operands: [.perColumn, .full],
            types: ProductTypes(.bfloat16, result: result, operands: [.float32, .bfloat16]))
          let c = try GuardedTensor(Tensor(result, shape: [m, n]))
          let scratch = GuardedBuffer(count: plan.workspaceByteCount / 4)
          let right = try packed(b, plan, .bfloat16)
          plan.run(
            a: a.raw, b: right.raw, c: c.raw,
            operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)],
            workspace: scratch.raw, pool: pool)
          let got = c.tensor.doubles()
          var worst = 0.0
          for index in want.indices {
            let exact = max(0, want[index] + biases[index % n] + others[index])
            let error = abs(got[index] - exact) / max(1, abs(exact))
            worst = error.isNaN ? .infinity : max(worst, error)
          }
          #expect(
            worst < (result == .float32 ? 2e-5 * Double(k).squareRoot() : 4.1e-3),
            "\(result) \(m)x\(n)x\(k) \(plan.tile)")
        }
      }
    }
  }

  @Test(arguments: byteProducts)
  func convolutionsOfBytesPadWithTheZeroPoint(isa: ISA, kind: ProductKind) throws {
    let shapes = [
      convShape(1, (9, 8), (5, 32), kernel: (1, 1)),
      convShape(1, (9, 8), (5, 32), kernel: (1, 1), stride: (2, 2)),
      convShape(1, (14, 14), (8, 16), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(2, (7, 7), (20, 40), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (23, 29), (3, 16), kernel: (7, 7), stride: (2, 2), pad: (3, 3, 3, 3)),
      convShape(1, (6, 31), (3, 17), kernel: (3, 3)),
      convShape(1, (13, 13), (4, 8), kernel: (3, 3), dilation: (2, 2), pad: (2, 2, 2, 2)),
      convShape(1, (9, 9), (12, 18), kernel: (3, 3), pad: (1, 1, 1, 1), groups: 3),
      convShape(1, (5, 4), (6, 12), kernel: (1, 1), groups: 2),
      convShape(1, (3, 3), (700, 20), kernel: (3, 3), pad: (1, 1, 1, 1)),
    ]
    let zero = 7
    for s in shapes {
      let x = try GuardedTensor(integers(.uint8, [s.batch, s.inHeight, s.inWidth, s.inChannels]))
      let depth = s.kernelHeight * s.kernelWidth * s.inChannels / s.groups
      let w = try integers(.int8, [depth, s.outChannels])
      let (elements, values) = (x.tensor.doubles(), w.doubles())
      let input = GuardedBuffer(count: x.tensor.count) { Float(elements[$0]) - Float(zero) }
      let weights = GuardedBuffer(count: w.count) { Float(values[$0]) }
      let centred = convReference(s, input, weights)
      // What the zero point adds to every sum.
      let columnSums = (0..<s.outChannels).map { column in
        (0..<depth).reduce(0.0) { $0 + values[$1 * s.outChannels + column] }
      }
      for tile in tiles(isa, kind, words: ConvPlan.words(s, kind)) {
        let plan = try ConvPlan(
          s, tile: tile, isa: isa, types: ProductTypes(kind), padValue: zero)
        let packed = try GuardedTensor(
          PackedLayout(
            batch: s.groups, rows: depth, columns: s.outChannels / s.groups, width: plan.nr,
            interleave: kind.interleave, segment: ConvPlan.memberElements(s)
          ).pack(w))
        let workspace = GuardedBuffer(count: (plan.workspaceByteCount + 3) / 4)
        let output = try GuardedTensor(
          Tensor(.int32, shape: [s.batch, s.outHeight, s.outWidth, s.outChannels]))
        plan.run(
          input: x.raw, packedWeights: packed.raw, output: output.raw, workspace: workspace.raw,
          pool: pool)
        let got = output.tensor.doubles()
        let wrong = got.indices.first { index in
          got[index] != centred[index] + Double(zero) * columnSums[index % s.outChannels]
        }
        #expect(wrong == nil, "\(s) \(plan.tile)")
      }
    }
  }
}
