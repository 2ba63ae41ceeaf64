// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import Testing

/// Winograd's form for bytes: sums are near the exact ones, and results differ next to ties only.
@Suite(.enabled(if: ISA.current != .portable))
struct ByteWinogradTests {
  private let pool = ThreadPool(threadCount: 2)

  private static let shapes = [
    convShape(1, (8, 8), (16, 16), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(3, (7, 7), (20, 40), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(1, (14, 13), (33, 17), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(1, (6, 31), (8, 9), kernel: (3, 3)),
    convShape(1, (3, 3), (8, 8), kernel: (3, 3)),
    convShape(1, (1, 1), (10, 12), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(1, (2, 9), (256, 8), kernel: (3, 3), pad: (2, 2, 2, 2)),
    convShape(1, (5, 11), (130, 70), kernel: (3, 3), pad: (0, 1, 2, 0)),
    convShape(3, (12, 12), (64, 130), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(1, (5, 5), (65, 33), kernel: (3, 3), pad: (1, 1, 1, 1)),
    convShape(1, (9, 10), (700, 24), kernel: (3, 3), pad: (1, 1, 1, 1)),
  ]

  /// Operands of a convolution and its exact sums, of raw bytes with `pad` around them.
  private struct Sample {
    let shape: ConvShape
    let input: GuardedTensor
    let weights: Tensor
    let sums: [Double]

    init(
      _ s: ConvShape, pad: Int, input: (Int) -> Int64, weight: (Int) -> Int64
    ) throws {
      shape = s
      let count = s.batch * s.inHeight * s.inWidth * s.inChannels
      let x = try Tensor(
        (0..<count).map(input), .uint8, shape: [s.batch, s.inHeight, s.inWidth, s.inChannels])
      weights = try Tensor(
        (0..<9 * s.inChannels * s.outChannels).map(weight), .int8,
        shape: [3, 3, s.inChannels, s.outChannels])
      self.input = try GuardedTensor(x)
      let (elements, values) = (x.doubles(), weights.doubles())
      let centred = convReference(
        s, GuardedBuffer(count: count) { Float(elements[$0] - Double(pad)) },
        GuardedBuffer(count: values.count) { Float(values[$0]) })
      let columnSums = (0..<s.outChannels).map { column in
        stride(from: column, to: values.count, by: s.outChannels).reduce(0.0) { $0 + values[$1] }
      }
      sums = centred.indices.map { centred[$0] + Double(pad) * columnSums[$0 % s.outChannels] }
    }

    /// Random weights, and inputs from a range.
    init(_ s: ConvShape, pad: Int, bytes: ClosedRange<Int64> = 0...255) throws {
      var generator = SeededGenerator(seed: UInt64(s.inChannels * 31 + s.outChannels))
      var others = SeededGenerator(seed: UInt64(s.inChannels * 7 + s.outHeight))
      try self.init(s, pad: pad, input: { _ in Int64.random(in: bytes, using: &generator) }) { _ in
        Int64.random(in: -128...127, using: &others)
      }
    }

    /// The standard deviation of the sums.
    var spread: Double {
      let mean = sums.reduce(0, +) / Double(sums.count)
      return (sums.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(sums.count)).squareRoot()
    }
  }

  private func run(
    _ sample: Sample, pad: Int, blockBytes: Int, types: ProductTypes,
    epilogue: ScalarExpr = .input(0),
    operands: [EpilogueOperand] = [], addresses: [UnsafeRawPointer] = []
  ) throws -> [Double] {
    let s = sample.shape
    let plan = try WinogradPlan(
      s, m: 4, tile: GemmTile.choose(run: 16, n: s.outChannels, stride: s.inChannels, isa: .current, kind: .int16),
      blockBytes: blockBytes, epilogue: epilogue, operands: operands, types: types,
      padValue: pad)
    let packed = try GuardedTensor(plan.packing.pack(sample.weights))
    let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
    let output = try GuardedTensor(
      Tensor(types.result, shape: [s.batch, s.outHeight, s.outWidth, s.outChannels]))
    plan.run(
      input: sample.input.raw, packedWeights: packed.raw, output: output.raw, operands: addresses,
      workspace: workspace.raw, pool: pool)
    return output.tensor.doubles()
  }

  @Test(arguments: [(0, 0...255), (7, 0...255), (128, 0...255), (128, 120...136)])
  func sumsAreNearTheExactOnes(pad: Int, bytes: ClosedRange<Int64>) throws {
    for s in Self.shapes {
      let sample = try Sample(s, pad: pad, bytes: bytes)
      for blockBytes in [0, 1 << 20] {
        let got = try run(sample, pad: pad, blockBytes: blockBytes, types: ProductTypes(.bytes(.current)))
        var worst = (error: 0.0, index: 0)
        var squares = 0.0
        for index in got.indices {
          let error = abs(got[index] - sample.sums[index])
          squares += error * error
          if error > worst.error { worst = (error, index) }
        }
        let rms = (squares / Double(got.count)).squareRoot()
        // Sums are whole numbers, which rounding moves by a half. Where a tile's last row and column
        // meet, the inverse transform multiplies by 64, so the worst is far above the mean.
        #expect(
          worst.error <= 1 + 0.01 * sample.spread && rms <= 1 + 0.001 * sample.spread,
          "\(s) pad \(pad): \(got[worst.index]) for \(sample.sums[worst.index]) at \(worst.index)")
      }
    }
  }

  /// `sum * scale + (residual - 12) / 4`, clipped below, and that in steps of 1/8.
  private func expression(_ type: DataType, zero: Int) -> ScalarExpr {
    let residual = (ScalarExpr.cast(.input(3), .float32) - .const(12)) * .const(0.25)
    let y = ScalarExpr.max(
      .const(-4), .cast(.input(0) + .input(1), .float32) * .input(2) + residual)
    if type == .float32 { return y }
    return ScalarQuantization(steps: y / .const(0.125), zeroPoint: zero, type: type).expression
  }

  @Test func epiloguesRoundNearTheExactResult() throws {
    for s in Self.shapes {
      let sample = try Sample(s, pad: 5)
      let n = s.outChannels
      var generator = SeededGenerator(seed: 11)
      let bias = (0..<n).map { _ in Int64.random(in: -20000...20000, using: &generator) }
      // Most results are inside the range of a byte.
      let scale = (0..<n).map { _ in
        Double(Float(Double.random(in: 2...6, using: &generator) / max(1, sample.spread)))
      }
      let other = sample.sums.map { _ in Int64.random(in: 0...24, using: &generator) }
      let operands = [
        try GuardedTensor(Tensor(bias, .int32, shape: [n])),
        try GuardedTensor(Tensor(scale, .float32, shape: [n])),
        try GuardedTensor(Tensor(other, .uint8, shape: [other.count])),
      ]
      let exact = sample.sums.indices.map { index in
        let sum = (sample.sums[index] + Double(bias[index % n])) * scale[index % n]
        return max(-4, sum + (Double(other[index]) - 12) / 4)
      }
      for (type, zero) in [(DataType.uint8, 40), (.int8, -9), (.float32, 0)] {
        let got = try run(
          sample, pad: 5, blockBytes: 1 << 18,
          types: ProductTypes(.bytes(.current), result: type, operands: [.int32, .float32, .uint8]),
          epilogue: expression(type, zero: zero), operands: [.perColumn, .perColumn, .full],
          addresses: operands.map { UnsafeRawPointer($0.raw) })
        var worst = (error: 0.0, index: 0)
        var moved = 0
        for index in got.indices {
          var want = exact[index]
          if type != .float32 {
            let range = type.integerRange
            let steps = Int64((want / 0.125).rounded(.toNearestOrEven)) + Int64(zero)
            want = Double(min(range.upperBound, max(range.lowerBound, steps)))
          }
          let error = abs(got[index] - want)
          if error > 0 { moved += 1 }
          if error > worst.error { worst = (error, index) }
        }
        #expect(
          worst.error <= (type == .float32 ? 0.05 : 1),
          "\(type) \(s): \(got[worst.index]) for \(exact[worst.index]) at \(worst.index)")
        #expect(
          type == .float32 || moved <= 2 + got.count / 25, "\(type) \(s): \(moved) of \(got.count)")
      }
    }
  }

  /// Bytes and weights that together make some place's sums as large as they can become.
  @Test func sumsOfExtremesDoNotOverflow() throws {
    let s = convShape(1, (8, 8), (256, 16), kernel: (3, 3))
    // Rows of the input transform; pixels are full where a place multiplies by a positive number.
    let transform: [[Int]] = [
      [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
      [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]
    for (row, column) in [(0, 0), (1, 1), (1, 2), (2, 2), (3, 3), (4, 1), (5, 5)] {
      for sign in [1, -1] {
        for weight in [Int64(-128), 127] {
          let sample = try Sample(
            s, pad: 0,
            input: { index in
              let pixel = index / s.inChannels
              let factor = transform[row][pixel / 8 % 6] * transform[column][pixel % 8 % 6]
              return factor * sign > 0 ? 255 : 0
            }, weight: { _ in weight })
          let got = try run(sample, pad: 0, blockBytes: 1 << 20, types: ProductTypes(.bytes(.current)))
          let wrong = got.indices.max {
            abs(got[$0] - sample.sums[$0]) < abs(got[$1] - sample.sums[$1])
          }
          let index = wrong ?? 0
          // Equal weights are all rounded to the same side.
          let error = abs(got[index] - sample.sums[index])
          let largest: Double = 9 * 256 * 255 * 128
          #expect(
            error <= 2e-3 * largest,
            "place (\(row), \(column)): \(got[index]) for \(sample.sums[index]) at \(index)")
        }
      }
    }
  }

  @Test func weightsComeBackExactly() throws {
    var generator = SeededGenerator(seed: 5)
    let layout = PackedLayout(
      winograd: 4, rows: 130, columns: 33, width: 16, interleave: 2, exactRun: WinogradPlan.exactRun
    )
    let count = 9 * 130 * 33
    let samples: [[Int64]] = [
      (0..<count).map { _ in Int64.random(in: -128...127, using: &generator) },
      (0..<count).map { _ in Bool.random(using: &generator) ? -128 : 127 },
      (0..<count).map { $0 / 33 % 2 == 0 ? 127 : -128 },
      Array(repeating: -128, count: count), Array(repeating: 0, count: count),
    ]
    for values in samples {
      let weights = try Tensor(values, .int8, shape: [3, 3, 130, 33])
      let packed = try layout.pack(weights)
      #expect(packed.dataType == .int16 && packed.count == layout.elementCount)
      #expect(try layout.unpack(packed, .int8, shape: weights.shape).integers() == values)
    }
  }

  @Test func damagedScalesAreNoTrap() throws {
    let layout = PackedLayout(
      winograd: 4, rows: 8, columns: 8, width: 16, interleave: 2, exactRun: WinogradPlan.exactRun)
    let packed = try layout.pack(Tensor(.int8, shape: [3, 3, 8, 8]))
    for pattern: UInt8 in [0xFF, 0x7F, 0x80, 0x7E] {
      for index in packed.mutableBytes.indices { packed.mutableBytes[index] = pattern }
      _ = try layout.unpack(packed, .int8, shape: [3, 3, 8, 8])
    }
    #expect(throws: ApusError.self) {
      try layout.unpack(Tensor(.int16, shape: [7]), .int8, shape: [3, 3, 8, 8])
    }
    #expect(throws: ApusError.self) { try layout.pack(Tensor(.float32, shape: [3, 3, 8, 8])) }
  }

  /// The tactic takes what is rounded to bytes, and agrees with the reference through tuning.
  @Test func tacticsTakeNarrowResultsOnly() throws {
    let selector = TacticSelector(try CPUBackend.shared(threadCount: 1))
    func problem(_ expression: ScalarExpr, _ type: DataType) throws -> Problem {
      let conv = Conv(
        strides: [1, 1], pads: [1, 1, 1, 1], channelsLast: true, sumType: .int32, padValue: 3)
      let weights = try Tensor(
        (0..<9 * 32 * 32).map { Int64($0 % 200) - 100 }, .int8, shape: [3, 3, 32, 32])
      return Problem(
        op: Fused(
          anchor: conv, anchorInputCount: 2, epilogue: Epilogue(expression, extraCount: 0)),
        inputs: [
          .init(dataType: .uint8, shape: [1, 9, 9, 32], constant: nil),
          .init(dataType: .int8, shape: weights.shape, constant: weights),
        ],
        outputs: [.init(dataType: type, shape: [1, 9, 9, 32], constant: nil)])
    }
    let y = ScalarExpr.cast(.input(0), .float32) * .const(1e-4)
    let bytes = ScalarQuantization(steps: y, zeroPoint: 7, type: .uint8).expression
    func takes(_ problem: Problem) -> Bool {
      selector.candidates(problem).choices.contains { $0.id.contains("winograd") }
    }
    #expect(try takes(problem(bytes, .uint8)))
    #expect(try takes(problem(.cast(y, .bfloat16), .bfloat16)) == ElementAccess.supports(.bfloat16, .current))
    #expect(try !takes(problem(y, .float32)))
  }
}
