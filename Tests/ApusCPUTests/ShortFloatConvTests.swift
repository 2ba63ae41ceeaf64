// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import ApusTestSupport
import Testing

/// Maxima of special numbers of type `bfloat16`, and Winograd's form of convolutions of them, compared with sums in
/// double precision.
@Suite(.enabled(if: CPUFeatures.host.avx512BF16))
struct ShortFloatConvTests {
  private let pool = ThreadPool(threadCount: 2)

  /// Random numbers of type `bfloat16`, and the same in single precision.
  private func numbers(_ shape: [Int], seed: UInt64) throws -> (GuardedTensor, GuardedBuffer) {
    var generator = SeededGenerator(seed: seed)
    let values = (0..<shape.reduce(1, *)).map { _ in Double.random(in: -1..<1, using: &generator) }
    let tensor = try Tensor(values, .bfloat16, shape: shape)
    let floats = tensor.doubles()
    return (try GuardedTensor(tensor), GuardedBuffer(count: floats.count) { Float(floats[$0]) })
  }

  /// `max(0, y + b + r)`, r of type `bfloat16`.
  private let epilogue = ScalarExpr.max(
    .const(0), .input(0) + .input(1) + .cast(.input(2), .float32))

  private func worst(
    _ got: Tensor, _ sums: [Double], _ bias: GuardedBuffer, _ other: GuardedBuffer
  ) -> Double {
    var worst = 0.0
    for (index, value) in got.doubles().enumerated() {
      let exact = max(0, sums[index] + Double(bias[index % bias.count]) + Double(other[index]))
      let error = abs(value - exact) / max(1, abs(exact))
      worst = error.isNaN ? .infinity : max(worst, error)
    }
    return worst
  }

  /// The error's root of the sum of squares over that of the results.
  private func relative(
    _ got: Tensor, _ sums: [Double], _ bias: GuardedBuffer, _ other: GuardedBuffer
  ) -> Double {
    var (error, all) = (0.0, 0.0)
    for (index, value) in got.doubles().enumerated() {
      let exact = max(0, sums[index] + Double(bias[index % bias.count]) + Double(other[index]))
      error += (value - exact) * (value - exact)
      all += exact * exact
    }
    return (error / all).squareRoot()
  }

  /// Elements compared as they are: bytes of both signs, and BF16 with infinities, zeros and NaNs of both signs.
  @Test(arguments: [DataType.uint8, .int8, .bfloat16]) func largestElements(type: DataType) throws {
    for channels in [1, 16, 31, 32, 33, 64, 65, 130] {
      let shapes = [
        convShape(1, (9, 9), (channels, channels), kernel: (3, 3), stride: (2, 2), pad: (1, 1, 1, 1)),
        convShape(2, (5, 17), (channels, channels), kernel: (3, 3), pad: (1, 1, 1, 1)),
        convShape(1, (6, 20), (channels, channels), kernel: (2, 3), dilation: (2, 2), pad: (2, 2, 2, 2)),
        convShape(1, (4, 5), (channels, channels), kernel: (4, 5)),
      ]
      for s in shapes {
        let count = s.batch * s.inHeight * s.inWidth * channels
        var generator = SeededGenerator(seed: UInt64(channels))
        let x = try GuardedTensor(Tensor(type, shape: [count]))
        let bytes = x.raw.assumingMemoryBound(to: UInt8.self)
        for index in 0..<x.tensor.byteCount { bytes[index] = UInt8(generator.integer(below: 256)) }
        if type == .bfloat16 {
          let words = x.raw.assumingMemoryBound(to: UInt16.self)
          // Rows of everything that is special, between numbers of all sizes.
          let special: [UInt16] = [0x7F80, 0xFF80, 0, 0x8000, 0xFFC0, 0x7FC0, 0xFF81, 0x7F81, 0xFFFF]
          for index in 0..<count {
            if words[index] & 0x7F80 == 0x7F80 { words[index] ^= 0x4000 }
            if index % 23 == 0 { words[index] = special[index / 23 % special.count] }
          }
        }
        let plan = try WindowPlan(
          .maximum, s, isa: .avx512, types: ProductTypes(result: type), inputType: type)
        let y = try GuardedTensor(Tensor(type, shape: [s.batch * s.outHeight * s.outWidth * channels]))
        plan.run(input: x.raw, output: y.raw, pool: pool)
        let (input, output) = (x.tensor.doubles(), y.tensor.doubles())
        for index in output.indices {
          let (c, place) = (index % channels, index / channels)
          let (column, row) = (place % s.outWidth, place / s.outWidth % s.outHeight)
          var want = -Double.infinity
          for ky in 0..<s.kernelHeight {
            for kx in 0..<s.kernelWidth {
              let iy = row * s.strideHeight + ky * s.dilationHeight - s.padTop
              let ix = column * s.strideWidth + kx * s.dilationWidth - s.padLeft
              guard (0..<s.inHeight).contains(iy), (0..<s.inWidth).contains(ix) else { continue }
              let image = place / s.outWidth / s.outHeight
              let value = input[((image * s.inHeight + iy) * s.inWidth + ix) * channels + c]
              want = want.isNaN || value.isNaN ? .nan : max(want, value)
            }
          }
          #expect(output[index] == want || output[index].isNaN && want.isNaN, "\(type) \(s) \(index)")
        }
      }
    }
  }

  @Test func winograd() throws {
    let shapes = [
      convShape(1, (8, 8), (16, 16), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(2, (7, 7), (20, 40), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (14, 13), (34, 17), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(1, (6, 31), (8, 9), kernel: (3, 3)),
      convShape(1, (5, 11), (130, 70), kernel: (3, 3), pad: (0, 1, 2, 0)),
    ]
    for s in shapes {
      let (x, input) = try numbers([s.batch, s.inHeight, s.inWidth, s.inChannels], seed: 1)
      let (w, weights) = try numbers([3, 3, s.inChannels, s.outChannels], seed: 2)
      let sums = convReference(s, input, weights)
      let bias = GuardedBuffer.random(s.outChannels, seed: 3)
      let (r, other) = try numbers([s.batch, s.outHeight, s.outWidth, s.outChannels], seed: 4)
      for (m, type) in [(2, DataType.bfloat16), (2, .float32), (4, .bfloat16), (4, .float32)] {
        let plan = try WinogradPlan(
          s, m: m, tile: GemmTile.choose(run: 16, n: s.outChannels, stride: s.inChannels, isa: .avx512),
          blockBytes: 1 << 18, isa: .avx512,
          epilogue: type == .float32 ? epilogue : .cast(epilogue, type),
          operands: [.perColumn, .full],
          types: ProductTypes(.bfloat16, result: type, operands: [.float32, .bfloat16]))
        let packed = try GuardedTensor(plan.packing.pack(w.tensor))
        let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
        let y = try GuardedTensor(
          Tensor(type, shape: [s.batch, s.outHeight, s.outWidth, s.outChannels]))
        plan.run(
          input: x.raw, packedWeights: packed.raw, output: y.raw,
          operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(r.raw)],
          workspace: workspace.raw, pool: pool)
        if m == 4 {
          // The transforms and products are in single precision.
          let allowed = 1e-5 * Double(9 * s.inChannels).squareRoot() + (type == .float32 ? 0 : 4e-3)
          #expect(worst(y.tensor, sums, bias, other) < allowed, "\(type) \(s)")
        }
        #expect(relative(y.tensor, sums, bias, other) < 5e-3, "m \(m) \(type) \(s)")
      }
      let layout = PackedLayout(
        winograd: 2, rows: s.inChannels, columns: s.outChannels, width: 32, interleave: 2)
      let back = try layout.unpack(try layout.pack(w.tensor), .bfloat16, shape: w.tensor.shape)
      for (got, want) in zip(back.doubles(), w.tensor.doubles()) { #expect(abs(got - want) < 0x1p-5) }
    }
  }
}
