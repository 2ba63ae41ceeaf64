// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// A pointwise region: machine code generated from its expression, over blocks within
/// which every operand is contiguous, periodic or constant.
struct PointwiseTactic: Tactic {
  let name = "cpu.pointwise.f32"
  let source = "jit"
  let pitches: PitchSupport = [.operands, .results]
  let isa: ISA
  let pool: ThreadPool

  private func expression(_ problem: Problem) -> ScalarExpr? {
    guard let op = problem.op as? any PointwiseOperator else { return nil }
    let types = problem.inputs.compactMap { $0?.dataType }
    guard types.count == problem.inputs.count else { return nil }
    return op.body(types)
  }

  func support(_ problem: Problem) -> Support {
    guard problem.op is any PointwiseOperator else { return .no(because: "not pointwise") }
    guard problem.inputs.allSatisfy({ $0 != nil }) else {
      return .no(because: "an optional operand is omitted")
    }
    guard types(problem).operands.contains(where: { $0 != .int32 }),
      problem.inputs.allSatisfy({ $0?.packing == nil })
    else { return .no(because: "integers only") }
    guard problem.outputs[0].count > 0 else { return .no(because: "empty") }
    do {
      _ = try compile(problem, TacticConfiguration())
      return .yes
    } catch {
      return .no(because: error.message)
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 1e-10
  }

  func inPlaceInputs(_ problem: Problem) -> [Int] {
    let result = problem.outputs[0]
    return problem.inputs.indices.filter { index in
      guard let input = problem.inputs[index], input.pitch == nil, result.pitch == nil else {
        return false
      }
      return input.shape == result.shape && input.dataType.bitWidth == result.dataType.bitWidth
    }
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let expression = expression(problem) else {
      throw ApusError(.internalError, "not a pointwise operator")
    }
    if Self.hasGaps(problem) { return try compileRows(problem, expression) }
    let blocks = BroadcastBlocks(
      operands: problem.inputs.map { $0?.shape ?? [] }, result: problem.outputs[0].shape)
    let kernel = try PointwiseKernel(
      expression, operands: blocks.kinds, types: types(problem), isa: isa)
    return PointwiseRegionKernel(
      kernel: kernel, blocks: blocks, types: types(problem), pool: pool)
  }

  /// Whether there are gaps between the rows of an operand or of the result.
  private static func hasGaps(_ problem: Problem) -> Bool {
    problem.outputs[0].pitch != nil || problem.inputs.contains { $0?.pitch != nil }
  }

  private func compileRows(_ problem: Problem, _ expression: ScalarExpr) throws(ApusError)
    -> any Kernel
  {
    let result = problem.outputs[0]
    var kinds: [PointwiseKernel.OperandKind] = []
    var steps: [Int] = []
    for input in problem.inputs.compactMap({ $0 }) {
      if input.shape == result.shape {
        kinds.append(.contiguous)
        steps.append(input.rowStride)
        continue
      }
      let isRow = input.count == result.rowWidth && input.rowWidth == result.rowWidth
      guard input.count == 1 || isRow else {
        throw ApusError(
          .notYetSupported,
          "beside rows with gaps between them, an operand of neither one row nor the result's shape")
      }
      kinds.append(input.count == 1 ? .scalar : .period(result.rowWidth))
      steps.append(0)
    }
    let rows = PointwiseKernel.Rows(
      width: result.rowWidth, steps: steps, resultStep: result.rowStride)
    return PointwiseRegionKernel(
      kernel: try PointwiseKernel(
        expression, operands: kinds, types: types(problem), rows: rows, isa: isa),
      blocks: BroadcastBlocks(kinds: kinds, count: result.count), types: types(problem), pool: pool)
  }

  private func types(_ problem: Problem) -> PointwiseKernel.Types {
    PointwiseKernel.Types(
      operands: problem.inputs.compactMap { $0?.dataType }, result: problem.outputs[0].dataType)
  }
}

/// How a broadcast is cut into equal blocks of the result within which operands are simple.
struct BroadcastBlocks: Sendable {
  /// How each operand is read within a block.
  let kinds: [PointwiseKernel.OperandKind]
  /// Elements of the result in a block.
  let blockCount: Int
  /// Sizes of the outer axes, and each operand's element strides along them.
  let outerSizes: [Int]
  let outerStrides: [[Int]]

  init(operands: [[Int]], result: [Int]) {
    let rank = result.count
    let aligned = operands.map { Array(repeating: 1, count: max(0, rank - $0.count)) + $0 }
    var split = 0
    while split < rank,
      !aligned.allSatisfy({ Self.kind(Array($0[split...]), Array(result[split...])) != nil })
    {
      split += 1
    }
    kinds = aligned.map { Self.kind(Array($0[split...]), Array(result[split...])) ?? .scalar }
    blockCount = result[split...].reduce(1, *)
    outerSizes = Array(result[..<split])
    outerStrides = aligned.map { shape in
      let strides = CopyPlan.rowMajorStrides(shape)
      return (0..<split).map { shape[$0] == 1 ? 0 : strides[$0] }
    }
  }

  /// One block.
  init(kinds: [PointwiseKernel.OperandKind], count: Int) {
    self.kinds = kinds
    blockCount = count
    outerSizes = []
    outerStrides = kinds.map { _ in [] }
  }

  private static func kind(_ operand: [Int], _ result: [Int]) -> PointwiseKernel.OperandKind? {
    if operand.allSatisfy({ $0 == 1 }) { return .scalar }
    if operand == result { return .contiguous }
    let lead = operand.prefix { $0 == 1 }.count
    guard Array(operand[lead...]) == Array(result[lead...]) else { return nil }
    return .period(operand.reduce(1, *))
  }

  /// The number of blocks.
  var outerCount: Int { outerSizes.reduce(1, *) }
}

struct PointwiseRegionKernel: Kernel {
  let kernel: PointwiseKernel
  let blocks: BroadcastBlocks
  let types: PointwiseKernel.Types
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }
  private var argumentCount: Int { types.operands.count }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let result = arguments[argumentCount].mutablePointer
    guard !blocks.outerSizes.isEmpty else {
      kernel.run(
        arguments.pointers(from: 0), result: result, count: blocks.blockCount, pool: pool)
      return
    }
    let count = blocks.outerCount
    let perTask = max(1, 16384 / max(1, blocks.blockCount))
    pool.parallelFor(
      (count + perTask - 1) / perTask, (self, arguments, result, count, perTask)
    ) { context, task in
      let (kernel, arguments, result, count, perTask) = context
      for block in (task * perTask)..<min(count, (task + 1) * perTask) {
        kernel.run(block, arguments, result)
      }
    }
  }

  private func run(
    _ block: Int, _ arguments: UnsafePointer<DeviceAddress>, _ result: UnsafeMutableRawPointer
  ) {
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: max(1, argumentCount)) {
      pointers in
      for index in 0..<argumentCount {
        var rest = block
        var offset = 0
        for axis in blocks.outerSizes.indices.reversed() {
          offset += rest % blocks.outerSizes[axis] * blocks.outerStrides[index][axis]
          rest /= blocks.outerSizes[axis]
        }
        pointers.initializeElement(
          at: index,
          to: arguments[index].pointer + offset * ElementAccess.byteCount(types.operands[index]))
      }
      let place = block * blocks.blockCount * ElementAccess.byteCount(types.result)
      kernel.run(
        UnsafePointer(pointers.baseAddress!), result: result + place,
        count: blocks.blockCount, pool: pool)
    }
  }
}
