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

/// Operands and results with gaps between their rows: every tactic that takes them gives what it gives
/// without gaps, and writes nothing in between.
@Suite struct PitchTests {
  /// A tensor whose rows have gaps before and behind them that hold a mark.
  private final class SpacedRows {
    private static let mark: UInt8 = 0xFB
    private let operand: Problem.Operand
    private let memory: UnsafeMutableRawBufferPointer
    private let lead: Int
    private let width: Int
    private let step: Int

    var address: DeviceAddress {
      DeviceAddress(bits: UInt64(UInt(bitPattern: memory.baseAddress! + lead)))
    }

    init(_ operand: Problem.Operand, holding tensor: Tensor? = nil) {
      self.operand = operand
      let size = operand.dataType.bitWidth / 8
      width = operand.rowWidth * size
      step = operand.rowStride * size
      lead = (operand.rowStride - operand.rowWidth) / 2 * size
      memory = .allocate(byteCount: max(64, operand.rowCount * step), alignment: 64)
      memory.initializeMemory(as: UInt8.self, repeating: Self.mark)
      guard let bytes = tensor?.bytes, let start = bytes.baseAddress else { return }
      for row in 0..<operand.rowCount {
        (memory.baseAddress! + lead + row * step).copyMemory(
          from: start + row * width, byteCount: width)
      }
    }

    deinit { memory.deallocate() }

    /// The elements' bytes, without gaps.
    var elements: [UInt8] {
      (0..<operand.rowCount).flatMap { row in
        Array(memory[lead + row * step..<lead + row * step + width])
      }
    }

    var gapsAreMarked: Bool {
      (0..<operand.rowCount * step).allSatisfy { place in
        (lead..<lead + width).contains(place % step) || memory[place] == Self.mark
      }
    }
  }

  private func operand(_ type: DataType, _ shape: [Int], constant seed: UInt64? = nil) throws
    -> Problem.Operand
  {
    var generator = SeededGenerator(seed: seed ?? 0)
    return Problem.Operand(
      dataType: type, shape: shape,
      constant: try seed.map { _ in try generator.tensor(type, shape: shape) })
  }

  /// The problem with other distances between rows.
  private func spaced(_ problem: Problem, operands: [Int], result: Bool) -> Problem {
    func spaced(_ operand: Problem.Operand, by gap: Int) -> Problem.Operand {
      Problem.Operand(
        dataType: operand.dataType, shape: operand.shape, constant: operand.constant,
        packing: operand.packing, pitch: operand.rowWidth + gap)
    }
    return Problem(
      op: problem.op,
      inputs: problem.inputs.enumerated().map { index, input in
        operands.contains(index) ? input.map { spaced($0, by: 5 + index) } : input
      },
      outputs: problem.outputs.map { result ? spaced($0, by: 47) : $0 })
  }

  /// The results' bytes; nil where a gap was written.
  private func run(_ problem: Problem, _ choice: TacticChoice) throws -> [[UInt8]]? {
    let stream = try CPUBackend.shared(threadCount: 2).makeStream()
    var generator = SeededGenerator(seed: 7)
    var kept: [Tensor] = []
    var inputs: [SpacedRows] = []
    var addresses: [DeviceAddress] = []
    let packing = choice.tactic.packing(problem, choice.configuration)
    for (index, input) in problem.inputs.enumerated() {
      guard let input else {
        addresses.append(.none)
        continue
      }
      if let constant = input.constant {
        let tensor = try packing[index].map { try $0.pack(constant) } ?? constant
        kept.append(tensor)
        addresses.append(DeviceAddress(bits: UInt64(UInt(bitPattern: tensor.bytes.baseAddress!))))
        continue
      }
      inputs.append(
        SpacedRows(input, holding: try generator.tensor(input.dataType, shape: input.shape)))
      addresses.append(inputs[inputs.count - 1].address)
    }
    let outputs = problem.outputs.map { SpacedRows($0) }
    addresses += outputs.map(\.address)
    let kernel = try choice.tactic.compile(problem, choice.configuration)
    let workspace = UnsafeMutableRawPointer.allocate(
      byteCount: max(64, kernel.workspaceByteCount), alignment: 64)
    defer { workspace.deallocate() }
    addresses.append(DeviceAddress(bits: UInt64(UInt(bitPattern: workspace))))
    try addresses.withUnsafeBufferPointer { try kernel.launch($0.baseAddress!, on: stream) }
    try stream.synchronize()
    withExtendedLifetime((kept, inputs)) {}
    return outputs.allSatisfy(\.gapsAreMarked) ? outputs.map(\.elements) : nil
  }

  /// Compares every choice that takes the problem with gaps; returns the names of their tactics.
  private func check(
    _ problem: Problem, operands: [Int] = [], result: Bool = true, _ comment: String
  ) throws -> Set<String> {
    let selector = TacticSelector(try CPUBackend.shared(threadCount: 2))
    let apart = spaced(problem, operands: operands, result: result)
    var seen: Set<String> = []
    for choice in selector.candidates(apart).choices {
      let want = try run(problem, choice)
      let got = try run(apart, choice)
      #expect(want != nil && got == want, "\(choice.id) \(comment)")
      seen.insert(choice.tactic.name)
    }
    return seen
  }

  /// A convolution of some element type, with an epilogue that reads a vector and, for single precision,
  /// a whole tensor.
  private func convolution(
    _ type: DataType, batch: Int = 1, _ size: (Int, Int), _ channels: (Int, Int), kernel: Int,
    stride: Int = 1, groups: Int = 1
  ) throws -> Problem {
    let pad = kernel / 2
    let out = [batch, (size.0 - 1) / stride + 1, (size.1 - 1) / stride + 1, channels.1]
    let conv = Conv(
      strides: [stride, stride], pads: [pad, pad, pad, pad], group: groups, channelsLast: true,
      sumType: type == .float32 ? nil : type == .bfloat16 ? .float32 : .int32)
    let weights = [kernel, kernel, channels.0 / groups, channels.1]
    var inputs = [
      try operand(type, [batch, size.0, size.1, channels.0]),
      try operand(type == .uint8 ? .int8 : type, weights, constant: 3),
    ]
    let expression: ScalarExpr
    switch type {
    case .uint8:
      let steps = ScalarExpr.cast(.input(0), .float32) * .const(1e-3)
      expression = ScalarQuantization(steps: steps, zeroPoint: 90, type: .uint8).expression
    case .bfloat16: expression = .cast(.max(.input(0), .const(0)), .bfloat16)
    default:
      expression = .max(.input(0) + .input(1) + .input(2), .const(0))
      inputs += [try operand(.float32, [channels.1], constant: 4), try operand(.float32, out)]
    }
    return Problem(
      op: Fused(
        anchor: conv, anchorInputCount: 2,
        epilogue: Epilogue(expression, extraCount: inputs.count - 2)), inputs: inputs,
      outputs: [try operand(type, out)])
  }

  private let types: [DataType] = [.float32, .bfloat16, .uint8]

  private func isFast(_ type: DataType) -> Bool {
    switch type {
    case .float32: ISA.current != .portable
    case .bfloat16: CPUDescription.fastTypes.contains(.bfloat16)
    default: CPUDescription.fastTypes.contains(.int8)
    }
  }

  @Test func convolutionsReadAndWriteBetweenGaps() throws {
    for type in types {
      let problems = [
        try convolution(type, (7, 9), (16, 3), kernel: 1),
        try convolution(type, batch: 2, (7, 9), (32, 17), kernel: 1),
        try convolution(type, batch: 3, (6, 5), (64, 96), kernel: 1),
        try convolution(type, batch: 2, (9, 8), (16, 33), kernel: 3),
        try convolution(type, (13, 14), (24, 70), kernel: 3),
        try convolution(type, (9, 8), (8, 20), kernel: 3, stride: 2),
        try convolution(type, (9, 8), (16, 24), kernel: 3, groups: 2),
        try convolution(type, (9, 8), (1024, 20), kernel: 1),
        try convolution(type, (9, 8), (16, 20), kernel: 1, stride: 2),
      ]
      var seen: Set<String> = []
      for (index, problem) in problems.enumerated() {
        seen.formUnion(try check(problem, "\(type) \(index)"))
        let reading = try check(problem, operands: [0], "reading \(type) \(index)")
        if isFast(type) { #expect(reading.contains("cpu.conv.f32.gemm"), "\(type) \(index)") }
      }
      if isFast(type) { #expect(seen.contains("cpu.conv.f32.gemm"), "\(type)") }
      // That of bytes needs AVX-512.
      if isFast(type) && (type == .float32 || ISA.current == .avx512) {
        #expect(seen.contains("cpu.conv.f32.winograd"), "\(type)")
      }
    }
  }

  @Test func depthwiseConvolutionsReadAndWriteBetweenGaps() throws {
    for type in types {
      var seen: Set<String> = []
      for channels in [3, 16, 17, 40] {
        for stride in [1, 2] {
          let problem = try convolution(
            type, batch: 2, (8, 15), (channels, channels), kernel: 3, stride: stride,
            groups: channels)
          seen.formUnion(try check(problem, "\(type) \(channels)"))
          _ = try check(problem, operands: [0], result: false, "reading \(type) \(channels)")
        }
      }
      let name = type == .uint8 ? "cpu.conv.dot.depthwise" : "cpu.conv.f32.depthwise"
      if isFast(type) { #expect(seen.contains(name), "\(type)") }
    }
  }

  @Test func poolingReadsAndWritesBetweenGaps() throws {
    for type in types {
      for channels in [3, 16, 33] {
        let pool = PoolAttributes(
          kernel: [3, 3], strides: [1, 1], pads: [1, 1, 1, 1], channelsLast: true)
        let problem = Problem(
          op: MaxPool(pool), inputs: [try operand(type, [2, 7, 8, channels])],
          outputs: [try operand(type, [2, 7, 8, channels])])
        let seen = try check(problem, "\(type) \(channels)")
          .intersection(try check(problem, operands: [0], result: false, "\(type) \(channels)"))
        if isFast(type) { #expect(seen.contains("cpu.pool.f32.window"), "\(type)") }
      }
    }
  }

  @Test func productsWriteBetweenGaps() throws {
    let problem = Problem(
      op: MatMul(), inputs: [try operand(.float32, [3, 5, 24]), try operand(.float32, [24, 35], constant: 2)],
      outputs: [try operand(.float32, [3, 5, 35])])
    let seen = try check(problem, "product")
    if isFast(.float32) { #expect(seen.contains("cpu.gemm.f32.packed")) }
  }

  @Test func pointwiseRegionsReadAndWriteBetweenGaps() throws {
    for type in types where type != .uint8 {
      for channels in [1, 3, 16, 41, 320] {
        let shape = [2, 5, 7, channels]
        let x = ScalarExpr.cast(.input(0), .float32)
        let expression = ScalarExpr.cast(
          .max(x * .input(1) + .input(2), .const(0)) + .cast(.input(3), .float32), type)
        let problem = Problem(
          op: Pointwise(expression: expression, resultType: type),
          inputs: [
            try operand(type, shape), try operand(.float32, [channels]),
            try operand(.float32, [1, 1, 1, channels], constant: 5), try operand(type, shape),
          ], outputs: [try operand(type, shape)])
        for operands in [[], [0], [0, 3], [3]] {
          for result in [true, false] where result || !operands.isEmpty {
            let seen = try check(
              problem, operands: operands, result: result, "\(type) \(channels) \(operands)")
            if isFast(type) && channels > 1 { #expect(seen.contains("cpu.pointwise.f32")) }
          }
        }
      }
    }
  }

  @Test func copiesReadAndWriteBetweenGaps() throws {
    let problem = Problem(
      op: Concat(axis: 3),
      inputs: [
        try operand(.float32, [2, 3, 4, 5]), try operand(.float32, [2, 3, 4, 16]),
        try operand(.float32, [2, 3, 4, 1]),
      ], outputs: [try operand(.float32, [2, 3, 4, 22])])
    for operands in [[], [0], [1, 2]] {
      let seen = try check(problem, operands: operands, "concatenation")
      #expect(seen.contains("cpu.copy.strided"))
    }
    let transposition = Problem(
      op: Transpose(permutation: [0, 2, 1]), inputs: [try operand(.float32, [2, 9, 4])],
      outputs: [try operand(.float32, [2, 4, 9])])
    #expect(try check(transposition, operands: [0], "transposition").contains("cpu.copy.strided"))
    // A row of the result is made of parts of several rows.
    let flat = Problem(
      op: Flatten(axis: 1), inputs: [try operand(.float32, [2, 9, 4])],
      outputs: [try operand(.float32, [2, 36])])
    #expect(try !check(flat, operands: [0], "flattening").contains("cpu.copy.strided"))
  }

  @Test func problemsWithGapsHaveNamesOfTheirOwn() throws {
    let problem = try convolution(.float32, (7, 9), (16, 3), kernel: 1)
    #expect(!problem.key.contains("pitch"))
    #expect(spaced(problem, operands: [], result: true).key.contains("f32[1, 7, 9, 3] pitch 50"))
  }
}
