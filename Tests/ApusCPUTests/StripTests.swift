// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusTensor
import Testing

/// Convolutions in strips give what the same convolutions give one after the other, bit for bit: with strips of
/// any height, any number of threads, and windows that reach over the image's edges and the strips'.
@Suite struct StripTests {
  private struct Case {
    var batch = 1
    var size: (Int, Int)
    var channels: (Int, Int, Int)
    var kernel = (3, 3)
    var stride = (1, 1)
    var dilation = (1, 1)
    var pad = (1, 1, 1, 1)
  }

  private static let cases = [
    Case(size: (9, 8), channels: (8, 20, 12)),
    Case(batch: 3, size: (7, 7), channels: (16, 32, 16)),
    Case(size: (12, 13), channels: (4, 36, 8), stride: (2, 2), pad: (0, 0, 1, 1)),
    Case(batch: 2, size: (11, 10), channels: (4, 16, 20), kernel: (5, 5), pad: (2, 2, 2, 2)),
    Case(size: (15, 9), channels: (12, 48, 4), kernel: (5, 5), stride: (2, 2), pad: (2, 2, 2, 2)),
    Case(size: (13, 6), channels: (4, 8, 8), stride: (3, 1), pad: (0, 1, 0, 1)),
    Case(size: (11, 11), channels: (4, 8, 4), dilation: (2, 2), pad: (2, 2, 2, 2)),
    Case(size: (3, 2), channels: (4, 68, 4), kernel: (5, 5), pad: (2, 2, 2, 2)),
    Case(size: (8, 5), channels: (8, 8, 4), kernel: (1, 3), stride: (2, 1), pad: (0, 1, 0, 1)),
    Case(size: (6, 6), channels: (4, 12, 4), pad: (4, 1, 4, 1)),
    Case(size: (1, 1), channels: (4, 4, 4)),
  ]

  @Test(arguments: testedISAs) func floats(isa: ISA) throws {
    for shape in Self.cases { try check(shape, .float32, .float32, isa) }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16 && testedISAs.contains(.avx512))) func shortFloats() throws {
    for shape in Self.cases { try check(shape, .bfloat16, .bfloat16, .avx512) }
  }

  @Test(arguments: byteProducts) func bytes(isa: ISA, kind: ProductKind) throws {
    for shape in Self.cases { try check(shape, kind, .uint8, isa) }
  }

  @Test func otherConvolutionsAreRefused() throws {
    let product = convShape(1, (6, 6), (4, 8), kernel: (1, 1))
    let window = convShape(1, (6, 6), (8, 8), kernel: (3, 3), pad: (1, 1, 1, 1), groups: 8)
    let stages = [StripPlan.Stage(product), StripPlan.Stage(window)]
    #expect(StripPlan.takes(stages))
    #expect(!StripPlan.takes(stages.reversed()))
    #expect(!StripPlan.takes([stages[0]]))
    let wide = StripPlan.Stage(convShape(1, (6, 6), (8, 8), kernel: (3, 3), pad: (1, 1, 1, 1)))
    #expect(!StripPlan.takes([stages[0], wide]) && StripPlan.takes([wide, stages[1]]))
    var largest = stages[1]
    largest.isMaximum = true
    #expect(StripPlan.takes([wide, largest]) && !StripPlan.takes([largest, stages[0]]))
    let residual = StripPlan.Stage(product, epilogue: .input(0) + .input(1), operands: [.full])
    #expect(!StripPlan.takes([residual, stages[1]]))
    let odd = StripPlan.Stage(
      convShape(1, (6, 6), (3, 8), kernel: (1, 1)), types: ProductTypes(.bfloat16, result: .bfloat16))
    #expect(!StripPlan.takes([odd, stages[1]]))
  }

  private func check(_ c: Case, _ kind: ProductKind, _ type: DataType, _ isa: ISA) throws {
    let window = convShape(
      c.batch, c.size, (c.channels.1, c.channels.1), kernel: c.kernel, stride: c.stride,
      dilation: c.dilation, pad: c.pad, groups: c.channels.1)
    let shapes = [
      convShape(c.batch, c.size, (c.channels.0, c.channels.1), kernel: (1, 1)), window,
      convShape(
        c.batch, (window.outHeight, window.outWidth), (c.channels.1, c.channels.2), kernel: (1, 1)),
    ]
    let isLastResidual = c.batch != 2
    let stages = shapes.enumerated().map { index, shape in
      Self.stage(shape, kind, type, isa, hasOther: index == 2 && isLastResidual)
    }
    let operands = try stages.enumerated().map { try Self.Operands($1, isa, seed: UInt64($0 + 7)) }
    let input = Self.memory(shapes[0].inputCount * kind.storedBytes, kind, seed: 5)

    // One after the other.
    var results: [GuardedBuffer] = []
    let pool = ThreadPool(threadCount: 2)
    for (index, stage) in stages.enumerated() {
      // Products of bytes read whole words behind an image.
      let result = GuardedBuffer(count: (stage.shape.outputCount * kind.storedBytes + 3) / 4 + 1)
      try Self.run(
        stage, isa, index == 0 ? input.raw : results[index - 1].raw, operands[index], result.raw, pool)
      results.append(result)
    }
    for range in [0..<3, 0..<2, 1..<3] {
      let part = Array(stages[range])
      guard StripPlan.takes(part, isa: isa) else {
        Issue.record("\(c) is not taken")
        continue
      }
      let source = range.lowerBound == 0 ? input : results[range.lowerBound - 1]
      let want = results[range.upperBound - 1]
      let byteCount = part[part.count - 1].shape.outputCount * kind.storedBytes
      for rows in [1, 2, 3, 5, 40] {
        for threads in [1, 3] {
          let plan = try StripPlan(part, rows: rows, threadCount: threads, isa: isa)
          let workspace = GuardedBuffer(count: (plan.workspaceByteCount + 3) / 4) { _ in .nan }
          let got = GuardedBuffer(count: want.count) { _ in .nan }
          let own = operands[range].map(\.addresses)
          own.withUnsafeBufferPointer { own in
            plan.run(
              input: source.raw, operands: own.baseAddress!, output: got.raw,
              workspace: workspace.raw, pool: ThreadPool(threadCount: threads))
          }
          let a = UnsafeRawBufferPointer(start: got.raw, count: byteCount)
          let b = UnsafeRawBufferPointer(start: want.raw, count: byteCount)
          #expect(
            a.elementsEqual(b), "\(isa) \(kind) \(c) stages \(range), \(rows) rows, \(threads) threads")
        }
      }
    }
  }

  /// A stage whose epilogue adds a bias, clips, and adds a tensor if there is one; bytes are rounded.
  private static func stage(
    _ shape: ConvShape, _ kind: ProductKind, _ type: DataType, _ isa: ISA, hasOther: Bool
  ) -> StripPlan.Stage {
    var value = ScalarExpr.input(0)
    if kind.isOfBytes { value = .cast(.input(0), .float32) * .const(0.004) }
    value = .max(value + .input(1), .const(0))
    if !kind.isOfBytes { value = .min(value, .const(6)) }
    if hasOther { value = value + (kind.isOfBytes ? .cast(.input(2), .float32) : .input(2)) }
    if kind.isOfBytes {
      value = ScalarQuantization(steps: value, zeroPoint: 3, type: .uint8).expression
    }
    return StripPlan.Stage(
      shape, epilogue: value, operands: hasOther ? [.perColumn, .full] : [.perColumn],
      types: ProductTypes(kind, result: type, operands: hasOther ? [.float32, type] : [.float32]),
      padValue: kind.isOfBytes ? 100 : 0, tile: GemmTile(rows: isa == .avx512 ? 14 : 6, vectors: 2))
  }

  /// Weights as the kernels read them, random in whatever order, and the epilogue's operands.
  private final class Operands {
    let weights: GuardedBuffer
    let bias: GuardedBuffer
    let other: GuardedBuffer
    let extras: UnsafeMutablePointer<UnsafeRawPointer>

    init(_ stage: StripPlan.Stage, _ isa: ISA, seed: UInt64) throws {
      let s = stage.shape
      let kind = stage.types.kind
      let columns = (s.outChannels + 127) / 128 * 128
      let count = s.kernelHeight * s.kernelWidth * 4 * (s.inChannels / s.groups + 3) * columns
      weights = StripTests.memory(count, kind, seed: seed)
      if stage.isDotWindow(isa) {
        // Rows that a window lacks must have zeros here.
        var generator = SeededGenerator(seed: seed)
        let dense = try generator.tensor(
          kind.isOfBytes ? .int8 : .bfloat16, shape: [s.kernelHeight, s.kernelWidth, 1, s.outChannels])
        let packed = try DotWindowPlan.packing(s, kind, isa: isa).pack(dense)
        weights.raw.copyMemory(from: packed.bytes.baseAddress!, byteCount: packed.byteCount)
      }
      bias = GuardedBuffer.random(s.outChannels, seed: seed + 1)
      other = StripTests.memory(s.outputCount * kind.storedBytes, kind, seed: seed + 2)
      extras = .allocate(capacity: 2)
      extras.initialize(to: UnsafeRawPointer(bias.raw))
      (extras + 1).initialize(to: UnsafeRawPointer(other.raw))
    }

    deinit { extras.deallocate() }

    var addresses: StripPlan.Operands {
      StripPlan.Operands(weights: UnsafeRawPointer(weights.raw), extras: UnsafePointer(extras))
    }
  }

  /// Random elements of a product's operands.
  private static func memory(_ byteCount: Int, _ kind: ProductKind, seed: UInt64) -> GuardedBuffer {
    let buffer = GuardedBuffer.random((byteCount + 3) / 4 + 1, seed: seed)
    for index in 0..<buffer.count {
      let float = buffer[index]
      switch kind {
      case .bfloat16:
        // Two numbers in a word, both of the float's size.
        let half = float.bitPattern >> 16
        buffer.pointer[index] = Float(bitPattern: half << 16 | (half ^ 0x8000))
      case .int8, .widenedInt8:
        let bits = UInt32(bitPattern: Int32(float * 2e9))
        (buffer.raw + 4 * index).storeBytes(of: bits, as: UInt32.self)
      default: break
      }
    }
    return buffer
  }

  private static func run(
    _ stage: StripPlan.Stage, _ isa: ISA, _ input: UnsafeRawPointer, _ operands: Operands,
    _ output: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) throws {
    let s = stage.shape
    let own = operands.addresses
    if s.groups == 1 {
      let plan = try ConvPlan(
        s, tile: stage.tile, isa: isa, epilogue: stage.epilogue, operands: stage.operands,
        types: stage.types, padValue: stage.padValue)
      let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4)
      plan.run(
        input: input, packedWeights: own.weights, output: output, operands: own.extras,
        workspace: workspace.raw, pool: pool)
    } else if stage.isDotWindow(isa) {
      let plan = try DotWindowPlan(
        s, epilogue: stage.epilogue, operands: stage.operands, types: stage.types,
        padValue: stage.padValue, isa: isa)
      plan.run(
        input: input, packedWeights: own.weights, output: output, operands: own.extras, pool: pool)
    } else {
      let plan = try WindowPlan(
        .depthwise, s, isa: isa, epilogue: stage.epilogue, operands: stage.operands,
        types: stage.types, inputType: stage.types.kind == .bfloat16 ? .bfloat16 : .float32)
      plan.run(
        input: input, weights: own.weights, output: output, operands: own.extras, pool: pool)
    }
  }
}

extension ConvShape {
  fileprivate var inputCount: Int { batch * inHeight * inWidth * inChannels }
  fileprivate var outputCount: Int { batch * outHeight * outWidth * outChannels }
}
