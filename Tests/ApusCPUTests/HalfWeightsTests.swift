// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import ApusTestSupport
import Testing

/// Products whose weights are stored in half precision, around the edges of tiles and panels, on every
/// instruction set of this machine.
@Suite struct HalfWeightsTests {
  private let pool = ThreadPool(threadCount: 2)

  private func half(_ shape: [Int], seed: UInt64) throws -> Tensor {
    var generator = SeededGenerator(seed: seed)
    let values = (0..<shape.reduce(1, *)).map { _ in Double.random(in: -1..<1, using: &generator) }
    return try Tensor(values, .float16, shape: shape)
  }

  @Test(arguments: testedISAs) func products(isa: ISA) throws {
    for (m, n, k) in [(1, 1, 1), (1, 5, 3), (3, 17, 5), (7, 64, 8), (14, 33, 9), (29, 100, 2), (49, 48, 131), (5, 300, 1030)] {
      let a = GuardedBuffer.random(m * k, seed: 1)
      let b = try half([k, n], seed: 2)
      let bias = GuardedBuffer.random(n, seed: 3)
      let weights = b.doubles()
      for tile in [nil] + GemmTile.candidates(isa).map(Optional.some) {
        let plan = try GemmPlan(
          m: m, n: n, k: k, lda: k, ldc: n, tile: tile, isa: isa,
          epilogue: .max(.const(0), .input(0) + .input(1)), operands: [.perColumn],
          types: ProductTypes(.float16Weights, operands: [.float32]))
        let right = try GuardedTensor(
          PackedLayout(batch: 1, rows: k, columns: n, width: plan.nr).pack(b))
        let c = try GuardedTensor(Tensor(.float32, shape: [m, n]))
        let scratch = GuardedBuffer(count: plan.workspaceByteCount / 4)
        plan.run(
          a: a.raw, b: right.raw, c: c.raw, operands: [UnsafeRawPointer(bias.raw)],
          workspace: scratch.raw, pool: pool)
        var worst = 0.0
        for (index, got) in c.tensor.doubles().enumerated() {
          var sum = Double(bias[index % n])
          for inner in 0..<k { sum += Double(a[index / n * k + inner]) * weights[inner * n + index % n] }
          let error = abs(got - max(0, sum))
          worst = error.isNaN ? .infinity : max(worst, error)
        }
        #expect(worst < 2e-5 * Double(k).squareRoot(), "\(isa) \(m)x\(n)x\(k) \(plan.tile)")
      }
    }
  }

  @Test(arguments: testedISAs) func convolutions(isa: ISA) throws {
    let shapes = [
      convShape(1, (9, 8), (5, 33), kernel: (1, 1)),
      convShape(1, (14, 14), (8, 16), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(2, (7, 7), (20, 40), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (23, 29), (3, 16), kernel: (7, 7), stride: (2, 2), pad: (3, 3, 3, 3)),
      convShape(1, (9, 9), (12, 18), kernel: (3, 3), pad: (1, 1, 1, 1), groups: 3),
      convShape(1, (3, 3), (700, 20), kernel: (3, 3), pad: (1, 1, 1, 1)),
    ]
    for s in shapes {
      let x = GuardedBuffer.random(s.batch * s.inHeight * s.inWidth * s.inChannels, seed: 1)
      let depth = s.kernelHeight * s.kernelWidth * s.inChannels / s.groups
      let w = try half([depth, s.outChannels], seed: 2)
      let values = w.floats()
      let want = convReference(s, x, GuardedBuffer(count: values.count) { values[$0] })
      for tile in [nil] + GemmTile.candidates(isa).map(Optional.some) {
        let plan = try ConvPlan(s, tile: tile, isa: isa, types: ProductTypes(.float16Weights))
        let packed = try GuardedTensor(
          PackedLayout(
            batch: s.groups, rows: depth, columns: s.outChannels / s.groups, width: plan.nr
          ).pack(w))
        try check(plan.workspaceByteCount, s, want, depth, "\(isa) \(s) \(plan.tile)") { y, workspace in
          plan.run(
            input: x.raw, packedWeights: packed.raw, output: y, workspace: workspace, pool: pool)
        }
      }
      guard WinogradPlan.takes(s) else { continue }
      let plan = try WinogradPlan(
        s, m: 2, tile: GemmTile.choose(run: 16, n: s.outChannels, stride: s.inChannels, isa: isa),
        blockBytes: 1 << 18, isa: isa, epilogue: .input(0), operands: [],
        types: ProductTypes(.float16Weights))
      let packed = try GuardedTensor(
        plan.packing.pack(try w.reshaped([3, 3, s.inChannels, s.outChannels])))
      // The transformed weights are rounded once more.
      try check(plan.workspaceByteCount, s, want, depth, "\(isa) winograd \(s)", rounding: 50) { y, workspace in
        plan.run(
          input: x.raw, packedWeights: packed.raw, output: y, operands: [], workspace: workspace,
          pool: pool)
      }
    }
  }

  private func check(
    _ workspaceBytes: Int, _ s: ConvShape, _ want: [Double], _ depth: Int, _ what: String,
    rounding: Double = 1,
    _ run: (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void
  ) throws {
    let workspace = GuardedBuffer(count: (workspaceBytes + 3) / 4) { _ in .nan }
    let y = try GuardedTensor(
      Tensor(.float32, shape: [s.batch, s.outHeight, s.outWidth, s.outChannels]))
    run(y.raw, workspace.raw)
    let worst = zip(y.tensor.doubles(), want).reduce(0) { worst, pair in
      let error = abs(pair.0 - pair.1)
      return error.isNaN ? .infinity : max(worst, error)
    }
    #expect(worst < rounding * 2e-5 * Double(depth).squareRoot(), "\(what): \(worst)")
  }
}
