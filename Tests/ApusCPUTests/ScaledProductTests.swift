// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusGraph
import Testing

/// Products with scaled weights against sums in double precision over scaled channels.
@Suite struct ScaledProductTests {
  @Test(arguments: testedISAs) func scaledChannels(isa: ISA) throws {
    let shapes = [(1, 1, 4, 4), (3, 49, 20, 12), (2, 196, 33, 40), (1, 35, 70, 7), (2, 5, 600, 100)]
    for (batch, pixels, inputs, outputs) in shapes {
      for ofEachImage in [true, false] {
        for tile in GemmTile.candidates(isa) {
          try check(batch, pixels, inputs, outputs, ofEachImage, tile, isa)
        }
      }
    }
  }

  private func check(
    _ batch: Int, _ pixels: Int, _ inputs: Int, _ outputs: Int, _ ofEachImage: Bool, _ tile: GemmTile,
    _ isa: ISA
  ) throws {
    let x = GuardedBuffer.random(batch * pixels * inputs)
    let factors = GuardedBuffer.random((ofEachImage ? batch : 1) * inputs, seed: 2)
    let weights = GuardedBuffer.random(inputs * outputs, seed: 3)
    let bias = GuardedBuffer.random(outputs, seed: 4)
    let other = GuardedBuffer.random(batch * pixels * outputs, seed: 5)
    let columns = tile.columns(isa)
    let packed = GuardedBuffer(count: PackedMatrix.byteCount(k: inputs, n: outputs, nr: columns) / 4)
    PackedMatrix.pack(
      weights.pointer, rowStride: outputs, k: inputs, n: outputs, nr: columns, into: packed.pointer)
    let plan = try ScaledProductPlan(
      batch: batch, pixels: pixels, inChannels: inputs, outChannels: outputs, ofEachImage: ofEachImage,
      tile: tile, isa: isa, epilogue: .max(.input(0) + .input(1), .const(0)) + .input(2),
      operands: [.perColumn, .full])
    var results: [[Float]] = []
    for threads in [1, 2] {
      let got = GuardedBuffer(count: batch * pixels * outputs) { _ in .nan }
      let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
      [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)].withUnsafeBufferPointer {
        plan.run(
          input: x.raw, factors: factors.raw, packedWeights: packed.raw, output: got.raw,
          operands: $0.baseAddress, workspace: workspace.raw, pool: ThreadPool(threadCount: threads))
      }
      results.append((0..<got.count).map { got[$0] })
    }
    #expect(results[0] == results[1])
    var error = 0.0
    for row in 0..<batch * pixels {
      let own = ofEachImage ? row / pixels * inputs : 0
      for column in 0..<outputs {
        var sum = 0.0
        for k in 0..<inputs {
          sum += Double(x[row * inputs + k]) * Double(factors[own + k]) * Double(weights[k * outputs + column])
        }
        let place = row * outputs + column
        let want = max(sum + Double(bias[column]), 0) + Double(other[place])
        error = max(error, abs(want - Double(results[0][place])))
      }
    }
    #expect(error < 2e-5, "\(isa) \(batch) x \(pixels) x \(inputs) x \(outputs) \(tile): \(error)")
  }
}
