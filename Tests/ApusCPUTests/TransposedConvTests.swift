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

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Transposed convolutions in phases, with all register tiles, compared with the operator they compute.
@Suite struct TransposedConvTests {
  struct Case: CustomStringConvertible, Sendable {
    var batch = 1
    var input: [Int]
    var channels: (Int, Int)
    var kernel: [Int]
    var op: ConvTranspose
    var description: String { "\(batch) x \(input) \(channels) \(kernel) \(op.attributes)" }
  }

  static let cases: [Case] = [
    Case(input: [5, 4], channels: (6, 9), kernel: [2, 2], op: ConvTranspose(strides: [2, 2])),
    Case(
      batch: 2, input: [3, 17], channels: (2, 33), kernel: [4, 4],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1])),
    Case(
      input: [7, 30], channels: (16, 16), kernel: [3, 3],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1], outputPadding: [1, 1])),
    Case(
      input: [4, 4], channels: (10, 70), kernel: [3, 3],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1])),
    Case(
      batch: 3, input: [4, 4], channels: (8, 5), kernel: [3, 3],
      op: ConvTranspose(pads: [1, 1, 1, 1])),
    Case(input: [1, 1], channels: (100, 40), kernel: [4, 4], op: ConvTranspose()),
    Case(
      batch: 2, input: [1, 1], channels: (30, 40), kernel: [4, 4],
      op: ConvTranspose(strides: [4, 4])),
    Case(
      input: [5, 3], channels: (6, 12), kernel: [5, 4],
      op: ConvTranspose(strides: [3, 2], pads: [2, 0, 1, 1], group: 3)),
    Case(
      input: [6, 5], channels: (4, 4), kernel: [3, 3],
      op: ConvTranspose(dilations: [2, 3], pads: [1, 0, 2, 1], group: 2)),
    Case(
      input: [5, 5], channels: (4, 7), kernel: [3, 2],
      op: ConvTranspose(strides: [2, 1], dilations: [3, 1])),
    Case(input: [9], channels: (4, 3), kernel: [5], op: ConvTranspose(strides: [3], pads: [1, 2])),
    Case(
      input: [2, 3, 4], channels: (4, 18), kernel: [3, 2, 3],
      op: ConvTranspose(strides: [2, 2, 1], pads: [1, 0, 1, 0, 0, 1])),
    Case(
      input: [3, 3], channels: (2, 2), kernel: [2, 2],
      op: ConvTranspose(strides: [2, 2], pads: [2, 2, 2, 1])),
    Case(
      input: [3, 3], channels: (2, 8), kernel: [2, 2],
      op: ConvTranspose(strides: [2, 2], outputShape: [8, 9])),
    Case(input: [3, 3], channels: (1400, 3), kernel: [2, 2], op: ConvTranspose(strides: [1, 1])),
  ]

  /// A long epilogue leaves registers for memory, and an operand of the result's shape is read with the
  /// result's gaps.
  private static let epilogues: [(ScalarExpr, @Sendable (Double, Double, Double) -> Double)] = [
    (.max(.input(0) + .input(1) + .input(2), .const(0)), { max(0, $0 + $1 + $2) }),
    (
      .unary(.hyperbolicTangent, .input(0) + .input(1)) + .input(2) * .unary(.sigmoid, .input(0)),
      { tanh($0 + $1) + $2 / (1 + exp(-$0)) }
    ),
  ]

  private func check(_ c: Case, _ isa: ISA, _ kind: ProductKind, _ result: DataType) throws {
    var plain = c.op
    let operandType: DataType = kind == .bfloat16 ? .bfloat16 : .float32
    if kind == .bfloat16 { plain.sumType = .float32 }
    let op = try #require(PhasedConvTranspose(plain, kernel: c.kernel))
    let group = max(1, plain.group)
    var generator = SeededGenerator(seed: 7)
    let x = try GuardedTensor(
      try generator.tensor(operandType, shape: [c.batch] + c.input + [c.channels.0]))
    let dense = try op.phased(
      try generator.tensor(operandType, shape: [c.channels.0, c.channels.1 / group] + c.kernel))
    let want = try #require(try op.evaluate([.tensor(x.tensor), .tensor(dense)])[0].tensor)
    let window = try plain.window(input: c.input, kernel: c.kernel)
    let shape = TransposedConvShape(
      batch: c.batch, input: c.input, output: window.output, channels: c.channels, kernel: c.kernel,
      strides: window.strides, dilations: window.dilations, begin: window.begin, groups: group)
    let bias = try GuardedTensor(try generator.tensor(.float32, shape: [c.channels.1]))
    let other = try GuardedTensor(try generator.tensor(.float32, shape: want.shape))
    let (sums, biases, others) = (want.doubles(), bias.tensor.doubles(), other.tensor.doubles())
    for (epilogue, function) in Self.epilogues {
      let expected = sums.indices.map { index in
        function(sums[index], biases[index % biases.count], others[index])
      }
      for tile in GemmTile.candidates(isa) {
        let plan = try TransposedConvPlan(
          shape, tile: tile, isa: isa,
          epilogue: result == .float32 ? epilogue : .cast(epilogue, result),
          operands: [.perColumn, .full],
          types: ProductTypes(kind, result: result, operands: [.float32, .float32]))
        let packed = try GuardedTensor(
          PackedLayout(
            batch: shape.phaseCount * group, rows: shape.taps * c.channels.0 / group,
            columns: c.channels.1 / group, width: plan.nr, interleave: kind.interleave
          ).pack(dense))
        let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
        for threads in [1, 2] {
          let y = try GuardedTensor(Tensor(result, shape: want.shape))
          memset(y.raw, 0xff, y.tensor.byteCount)
          plan.run(
            input: x.raw, packedWeights: packed.raw, output: y.raw,
            operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)],
            workspace: workspace.raw, pool: ThreadPool(threadCount: threads))
          let difference = TensorDifference(
            y.tensor, try Tensor(expected, .float32, shape: want.shape))
          #expect(
            difference.relativeL2 < (result == .float32 ? 1e-5 : 4e-3),
            "\(isa) \(tile) \(kind) \(c): \(difference)")
        }
      }
    }
  }

  @Test(arguments: testedISAs) func singlePrecision(isa: ISA) throws {
    for c in Self.cases { try check(c, isa, .float32, .float32) }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16)) func shortFloats() throws {
    for c in Self.cases where c.channels.0 / max(1, c.op.group) % 2 == 0 {
      try check(c, .avx512, .bfloat16, .float32)
      try check(c, .avx512, .bfloat16, .bfloat16)
    }
  }
}
