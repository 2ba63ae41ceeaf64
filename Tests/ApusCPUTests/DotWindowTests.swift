// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import ApusTestSupport
import Testing

/// Depthwise convolutions of bytes and of BF16 around the edges of vectors, windows and images.
@Suite struct DotWindowTests {
  private let pool = ThreadPool(threadCount: 2)

  private func integers(_ type: DataType, _ shape: [Int], _ range: ClosedRange<Int64>) throws -> Tensor {
    var generator = SeededGenerator(seed: UInt64(shape.reduce(1, *)) + 11)
    let values = (0..<shape.reduce(1, *)).map { _ in Int64.random(in: range, using: &generator) }
    return try Tensor(values, type, shape: shape)
  }

  private static func shapes(_ channels: Int) -> [ConvShape] {
    var shapes = [
      convShape(1, (9, 9), (channels, channels), kernel: (3, 3), pad: (1, 1, 1, 1)),
      convShape(2, (8, 33), (channels, channels), kernel: (3, 3), stride: (2, 2), pad: (0, 0, 1, 1)),
      convShape(1, (7, 30), (channels, channels), kernel: (5, 5), pad: (2, 2, 2, 2)),
      convShape(1, (3, 2), (channels, channels), kernel: (5, 5), pad: (2, 2, 2, 2)),
      convShape(1, (11, 12), (channels, channels), kernel: (3, 2), dilation: (2, 3), pad: (2, 3, 2, 0)),
      convShape(1, (8, 9), (channels, channels), kernel: (7, 7), stride: (3, 2), pad: (3, 3, 3, 3)),
      convShape(1, (1, 40), (channels, channels), kernel: (1, 4)),
    ]
    for index in shapes.indices { shapes[index].groups = channels }
    return shapes
  }

  @Test(arguments: byteProducts, [true, false])
  func sumsAreExactAndPaddedWithTheZeroPoint(product: (isa: ISA, kind: ProductKind), permutesBytes: Bool) throws {
    let (isa, kind) = product
    if permutesBytes && !(isa == .avx512 && kind == .int8 && CPUFeatures.host.avx512VBMI) { return }
    for channels in [2, 7, 8, 15, 16, 17, 27, 64, 70, 80, 96] {
      for s in Self.shapes(channels) {
        try check(s, padValue: 131, isa, kind, permutesBytes)
      }
    }
  }

  private func check(_ s: ConvShape, padValue zero: Int, _ isa: ISA, _ kind: ProductKind, _ permutesBytes: Bool)
    throws
  {
    let channels = s.inChannels
    let x = try GuardedTensor(
      integers(.uint8, [s.batch, s.inHeight, s.inWidth, channels], 0...255))
    let w = try integers(.int8, [s.kernelHeight, s.kernelWidth, channels], -128...127)
    let (elements, values) = (x.tensor.doubles(), w.doubles())
    let centred = convReference(
      s, GuardedBuffer(count: elements.count) { Float(elements[$0]) - Float(zero) },
      GuardedBuffer(count: values.count) { Float(values[$0]) })
    let places = s.kernelHeight * s.kernelWidth
    let sums = centred.indices.map { index in
      centred[index]
        + Double(zero) * (0..<places).reduce(0.0) { $0 + values[$1 * channels + index % channels] }
    }
    let packed = try GuardedTensor(DotWindowPlan.packing(s, kind, isa: isa).pack(w))
    let shape = [s.batch, s.outHeight, s.outWidth, channels]
    let raw = try DotWindowPlan(
      s, types: ProductTypes(kind), padValue: zero, isa: isa, permutesBytes: permutesBytes)
    let output = try GuardedTensor(Tensor(.int32, shape: shape))
    raw.run(input: x.raw, packedWeights: packed.raw, output: output.raw, pool: pool)
    let got = output.tensor.doubles()
    let wrong = got.indices.first { got[$0] != sums[$0] }
    #expect(wrong == nil, "\(s) at \(wrong ?? -1): \(got[wrong ?? 0]) for \(sums[wrong ?? 0])")

    let bias = try GuardedTensor(integers(.int32, [channels], -20000...20000))
    let other = try GuardedTensor(integers(.uint8, shape, 0...255))
    let sum = ScalarExpr.cast(.input(0) + .input(1), .float32) * .const(1.0 / 512)
    let quantization = ScalarQuantization(
      steps: .max(.const(0), sum + ScalarExpr.cast(.input(2), .float32)), zeroPoint: 3, type: .uint8)
    let plan = try DotWindowPlan(
      s, epilogue: quantization.expression, operands: [.perColumn, .full],
      types: ProductTypes(kind, result: .uint8, operands: [.int32, .uint8]), padValue: zero, isa: isa,
      permutesBytes: permutesBytes)
    let bytes = try GuardedTensor(Tensor(.uint8, shape: shape))
    plan.run(
      input: x.raw, packedWeights: packed.raw, output: bytes.raw,
      operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)], pool: pool)
    let (biases, others, result) = (bias.tensor.doubles(), other.tensor.doubles(), bytes.tensor.doubles())
    var worst = 0.0
    for index in sums.indices {
      // A 512th of an integer is exact, so ties are too.
      let y = max(0, (sums[index] + biases[index % channels]) / 512 + others[index])
      let exact = min(255, y.rounded(.toNearestOrEven) + 3)
      worst = max(worst, abs(result[index] - exact))
    }
    #expect(worst == 0, "\(s)")
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16 && testedISAs.contains(.avx512)))
  func shortFloatsComeClose() throws {
    for channels in [2, 15, 16, 17, 31, 32, 48, 64, 75, 96] {
      for s in Self.shapes(channels) { try checkShortFloats(s) }
    }
  }

  private func checkShortFloats(_ s: ConvShape) throws {
    let channels = s.inChannels
    var generator = SeededGenerator(seed: UInt64(channels + s.inWidth))
    let x = try GuardedTensor(
      generator.tensor(.bfloat16, shape: [s.batch, s.inHeight, s.inWidth, channels]))
    let w = try generator.tensor(.bfloat16, shape: [s.kernelHeight, s.kernelWidth, channels])
    let (elements, values) = (x.tensor.doubles(), w.doubles())
    let exact = convReference(
      s, GuardedBuffer(count: elements.count) { Float(elements[$0]) },
      GuardedBuffer(count: values.count) { Float(values[$0]) })
    let packed = try GuardedTensor(DotWindowPlan.packing(s, .bfloat16, isa: .avx512).pack(w))
    let shape = [s.batch, s.outHeight, s.outWidth, channels]
    let sums = try GuardedTensor(Tensor(.float32, shape: shape))
    try DotWindowPlan(s, types: ProductTypes(.bfloat16), isa: .avx512).run(
      input: x.raw, packedWeights: packed.raw, output: sums.raw, pool: pool)
    let largest = exact.map(abs).max() ?? 0
    func worst(_ got: Tensor, _ wanted: [Double], _ share: Double) {
      let errors = zip(got.doubles(), wanted).map { abs($0 - $1) / (largest * 1e-5 + abs($1) * share) }
      let index = errors.indices.max { errors[$0] < errors[$1] } ?? 0
      #expect(errors[index] <= 1, "\(s) at \(index): \(got.doubles()[index]) for \(wanted[index])")
    }
    worst(sums.tensor, exact, 1e-5)

    let bias = try GuardedTensor(generator.tensor(.float32, shape: [channels]))
    let other = try GuardedTensor(generator.tensor(.bfloat16, shape: shape))
    let plan = try DotWindowPlan(
      s, epilogue: .max(.input(0) + .input(1), .const(0)) + .input(2), operands: [.perColumn, .full],
      types: ProductTypes(.bfloat16, result: .bfloat16, operands: [.float32, .bfloat16]), isa: .avx512)
    let output = try GuardedTensor(Tensor(.bfloat16, shape: shape))
    plan.run(
      input: x.raw, packedWeights: packed.raw, output: output.raw,
      operands: [UnsafeRawPointer(bias.raw), UnsafeRawPointer(other.raw)], pool: pool)
    let (biases, others) = (bias.tensor.doubles(), other.tensor.doubles())
    worst(
      output.tensor,
      exact.indices.map { max(0, exact[$0] + biases[$0 % channels]) + others[$0] }, 1.0 / 256)
  }
}
