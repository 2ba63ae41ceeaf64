// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import Testing

/// An elementwise operator and the 1x1 convolution behind it give in strips what their kernels give one after the
/// other, bit for bit.
@Suite struct ElementwiseStripTests {
  private static let shapes = [
    convShape(1, (1, 1), (4, 4), kernel: (1, 1)), convShape(3, (7, 7), (20, 12), kernel: (1, 1)),
    convShape(2, (14, 3), (32, 16), kernel: (1, 1)), convShape(1, (9, 5), (36, 8), kernel: (1, 1)),
    convShape(2, (4, 14), (68, 40), kernel: (1, 1)),
  ]
  private static let operands: [StripElementwise.Operand] = [
    .perChannel(ofEachImage: true), .perChannel(ofEachImage: false), .scalar,
  ]

  @Test(arguments: testedISAs) func floats(isa: ISA) throws {
    for shape in Self.shapes {
      for operand in Self.operands { try check(shape, operand, .float32, .float32, isa) }
    }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16 && testedISAs.contains(.avx512))) func shortFloats() throws {
    for shape in Self.shapes {
      for operand in Self.operands { try check(shape, operand, .float32, .bfloat16, .avx512) }
      try check(shape, Self.operands[0], .bfloat16, .bfloat16, .avx512)
    }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512VNNI && testedISAs.contains(.avx512))) func bytes() throws {
    for shape in Self.shapes {
      for operand in Self.operands { try check(shape, operand, .uint8, .uint8, .avx512) }
      try check(shape, Self.operands[0], .float32, .uint8, .avx512)
    }
  }

  @Test func anOperatorBehindAProductIsRefused() throws {
    let (stage, _) = Self.stage(Self.shapes[0], .scalar, .float32, .float32)
    let product = StripPlan.Stage(Self.shapes[0])
    #expect(StripPlan.takes([stage, product]))
    #expect(!StripPlan.takes([product, stage]))
  }

  /// `x * factor`, rounded where the result is of bytes.
  private static func stage(
    _ s: ConvShape, _ operand: StripElementwise.Operand, _ from: DataType, _ to: DataType
  ) -> (StripPlan.Stage, ProductKind) {
    var value = from == .uint8 ? ScalarExpr.cast(.input(0), .float32) - .const(9) : .input(0)
    value = value * .input(1)
    let kinds: [DataType: ProductKind] = [.float32: .float32, .bfloat16: .bfloat16, .uint8: .int8]
    switch to {
    case .uint8: value = ScalarQuantization(steps: value, zeroPoint: 3, type: .uint8).expression
    case .bfloat16: value = .cast(value, .bfloat16)
    default: break
    }
    var shape = s
    shape.outChannels = s.inChannels
    var stage = StripPlan.Stage(shape, types: ProductTypes(kinds[from] ?? .float32, result: to))
    stage.elementwise = StripElementwise(
      value, operands: [operand], types: PointwiseKernel.Types(operands: [from, .float32], result: to))
    return (stage, kinds[to] ?? .float32)
  }

  private func check(
    _ s: ConvShape, _ operand: StripElementwise.Operand, _ from: DataType, _ to: DataType, _ isa: ISA
  ) throws {
    let (stage, kind) = Self.stage(s, operand, from, to)
    let pixels = s.inHeight * s.inWidth
    let inputBytes = from.bitWidth / 8
    let input = Self.memory(s.batch * pixels * s.inChannels, from)
    let factors = GuardedBuffer.random(
      operand == .scalar ? 1 : operand == .perChannel(ofEachImage: true) ? s.batch * s.inChannels : s.inChannels,
      seed: 4)
    let weights = Self.memory((s.inChannels + 3) * 128, kind == .int8 ? .uint8 : to)
    let pool = ThreadPool(threadCount: 2)

    // One after the other. Products read whole words behind an image.
    let between = GuardedBuffer(count: (s.batch * pixels * s.inChannels * kind.elementBytes + 3) / 4 + 1)
    let kernel = try PointwiseKernel(
      try #require(stage.elementwise).expression,
      operands: [.contiguous, operand == .scalar ? .scalar : .period(s.inChannels)],
      types: try #require(stage.elementwise).types, isa: isa)
    for image in 0..<s.batch {
      let own = operand == .perChannel(ofEachImage: true) ? image * s.inChannels : 0
      let operands = [
        UnsafeRawPointer(input.raw) + image * pixels * s.inChannels * inputBytes,
        UnsafeRawPointer(factors.pointer + own),
      ]
      kernel.run(
        operands, result: between.raw + image * pixels * s.inChannels * kind.elementBytes,
        count: pixels * s.inChannels, pool: pool)
    }
    let tile = GemmTile(rows: isa == .avx512 ? 14 : 6, vectors: 2)
    let plan = try ConvPlan(s, tile: tile, isa: isa, types: ProductTypes(kind))
    let count = s.batch * pixels * s.outChannels
    let want = GuardedBuffer(count: count)
    let none: UnsafePointer<UnsafeRawPointer>? = nil
    plan.run(
      input: between.raw, packedWeights: weights.raw, output: want.raw, operands: none,
      workspace: GuardedBuffer(count: plan.workspaceByteCount / 4).raw, pool: pool)

    let product = StripPlan.Stage(s, types: ProductTypes(kind), tile: tile)
    for rows in [1, 2, 5, 20] {
      for threads in [1, 2] {
        let plan = try StripPlan([stage, product], rows: rows, threadCount: threads, isa: isa)
        let workspace = GuardedBuffer(count: (plan.workspaceByteCount + 3) / 4) { _ in .nan }
        let got = GuardedBuffer(count: count) { _ in .nan }
        let extras = [UnsafeRawPointer(factors.raw)]
        extras.withUnsafeBufferPointer { extras in
          let operands = [
            StripPlan.Operands(weights: UnsafeRawPointer(weights.raw), extras: extras.baseAddress!),
            StripPlan.Operands(weights: UnsafeRawPointer(weights.raw), extras: extras.baseAddress!),
          ]
          operands.withUnsafeBufferPointer {
            plan.run(
              input: input.raw, operands: $0.baseAddress!, output: got.raw, workspace: workspace.raw,
              pool: ThreadPool(threadCount: threads))
          }
        }
        let a = UnsafeRawBufferPointer(start: got.raw, count: count * 4)
        let b = UnsafeRawBufferPointer(start: want.raw, count: count * 4)
        #expect(a.elementsEqual(b), "\(isa) \(from) \(to) \(operand) \(s), \(rows) rows, \(threads) threads")
      }
    }
  }

  /// Random elements that end where the memory ends; bytes and floats of moderate size.
  private static func memory(_ count: Int, _ type: DataType) -> GuardedBuffer {
    let perWord = 32 / type.bitWidth
    let buffer = GuardedBuffer.random((count + perWord - 1) / perWord, seed: 8)
    for index in 0..<buffer.count {
      let float = buffer[index]
      switch type {
      case .bfloat16:
        let half = float.bitPattern >> 16
        buffer.pointer[index] = Float(bitPattern: half << 16 | (half ^ 0x8000))
      case .uint8:
        let bits = UInt32(bitPattern: Int32(float * 2e9))
        (buffer.raw + 4 * index).storeBytes(of: bits, as: UInt32.self)
      default: break
      }
    }
    return buffer
  }
}
