// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import Testing

import ApusCPU

@Suite struct WinogradTests {
  private let pool = ThreadPool(threadCount: 2)

  @Test(arguments: testedISAs) func agreesWithTheDirectForm(isa: ISA) throws {
    let shapes = [
      convShape(1, (8, 8), (16, 16), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(2, (7, 7), (20, 40), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (14, 13), (33, 17), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (6, 31), (8, 9), kernel: (3, 3)),
      convShape(1, (3, 3), (8, 8), kernel: (3, 3)),
      convShape(1, (1, 1), (10, 12), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (2, 9), (256, 8), kernel: (3, 3), pad: (2, 2, 2, 2)),
      convShape(1, (5, 11), (8, 70), kernel: (3, 3), pad: (0, 1, 2, 0)),
      convShape(3, (12, 12), (64, 64), kernel: (3, 3), pad: (1, 1, 1, 1)),
    ]
    for s in shapes {
      let input = GuardedBuffer.random(s.batch * s.inHeight * s.inWidth * s.inChannels)
      let weights = GuardedBuffer.random(9 * s.inChannels * s.outChannels, seed: 2)
      let want = convReference(s, input, weights)
      let bias = GuardedBuffer.random(s.outChannels, seed: 3)
      let other = GuardedBuffer.random(want.count, seed: 4)
      let dense = try Tensor(
        (0..<9 * s.inChannels * s.outChannels).map { Double(weights[$0]) }, .float32,
        shape: [3, 3, s.inChannels, s.outChannels])
      for m in [2, 4] {
        for blockBytes in [0, 1 << 20] {
          let plan = try WinogradPlan(
            s, m: m, tile: GemmTile.choose(run: 16, n: s.outChannels, stride: s.inChannels, isa: isa),
            blockBytes: blockBytes, isa: isa,
            epilogue: .max(.input(0) + .input(1) + .input(2), .const(0)),
            operands: [.perColumn, .full])
          let packed = try plan.packing.pack(dense)
          let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
          let output = GuardedBuffer(count: want.count) { _ in .nan }
          plan.run(
            input: input.raw, packedWeights: packed.bytes.baseAddress!, output: output.raw,
            operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)],
            workspace: workspace.raw, pool: pool)
          var worst = 0.0
          for index in 0..<want.count {
            let exact = max(
              0, want[index] + Double(bias[index % s.outChannels]) + Double(other[index]))
            let error = abs(Double(output[index]) - exact)
            worst = error.isNaN ? .infinity : max(worst, error)
          }
          let k = Double(9 * s.inChannels).squareRoot()
          #expect(worst < (m == 2 ? 5e-6 : 1e-5) * (1 + k), "\(isa) m \(m) \(s)")
        }
      }
    }
  }

  /// An engine for several sizes packs its weights once.
  @Test func weightsOfOneSizeServeAnother() throws {
    let selector = TacticSelector(try CPUBackend.shared(threadCount: 1))
    func problem(_ batch: Int, _ side: Int, packing: PackedLayout?) -> Problem {
      Problem(
        op: Conv(strides: [1, 1], pads: [1, 1, 1, 1], channelsLast: true),
        inputs: [
          .init(dataType: .float32, shape: [batch, side, side, 48], constant: nil),
          .init(dataType: .float32, shape: [3, 3, 48, 192], constant: nil, packing: packing),
        ],
        outputs: [.init(dataType: .float32, shape: [batch, side, side, 192], constant: nil)])
    }
    let one = problem(1, 13, packing: nil)
    let layouts = Set(
      selector.candidates(one).choices.compactMap {
        $0.tactic.packing(one, $0.configuration)[1]
      })
    for layout in layouts {
      for (batch, side) in [(1, 1), (1, 13), (4, 13), (64, 56)] {
        let other = problem(batch, side, packing: layout)
        #expect(!selector.candidates(other).choices.isEmpty, "\(layout) \(batch) \(side)")
      }
    }
  }

  @Test func weightsComeBack() throws {
    var values: [Double] = []
    for index in 0..<(9 * 5 * 7) { values.append(Double((index * 7919) % 101) / 50 - 1) }
    let weights = try Tensor(values, .float32, shape: [3, 3, 5, 7])
    for m in [2, 4] {
      let layout = PackedLayout(winograd: m, rows: 5, columns: 7, width: 16)
      let back = try layout.unpack(try layout.pack(weights), .float32, shape: [3, 3, 5, 7]).doubles()
      for (got, want) in zip(back, weights.doubles()) { #expect(abs(got - want) < 1e-6) }
    }
  }
}
