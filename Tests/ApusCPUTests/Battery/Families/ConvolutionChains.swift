// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
import ApusTensor

/// Chains: depthwise convolutions between 1x1 convolutions or beside one, elementwise operators before one, and
/// convolutions before maximum pooling.
enum ConvolutionChains: ProblemFamily {
  private struct Case {
    var batch = 1
    var size: [Int]
    /// Of the input, between the stages, and of the result.
    var channels: (Int, Int, Int)
    var kernel = [3, 3]
    var strides = [1, 1]
    var dilations = [1, 1]
    var pads = [1, 1, 1, 1]
  }

  private static let cases = [
    Case(size: [9, 8], channels: (8, 20, 12)),
    Case(batch: 3, size: [7, 7], channels: (16, 32, 16)),
    Case(size: [12, 13], channels: (4, 36, 8), strides: [2, 2], pads: [0, 0, 1, 1]),
    Case(batch: 2, size: [11, 10], channels: (4, 16, 20), kernel: [5, 5], pads: [2, 2, 2, 2]),
    Case(size: [13, 6], channels: (4, 8, 7), strides: [3, 1], pads: [0, 1, 0, 1]),
    Case(size: [11, 11], channels: (4, 8, 4), dilations: [2, 2], pads: [2, 2, 2, 2]),
    Case(size: [3, 2], channels: (4, 68, 5), kernel: [5, 5], pads: [2, 2, 2, 2]),
    Case(size: [6, 6], channels: (4, 12, 33), pads: [4, 1, 4, 1]),
    Case(size: [1, 1], channels: (4, 4, 4)),
  ]

  /// More of what is scaled.
  private static let wide = [
    Case(batch: 3, size: [7, 7], channels: (0, 20, 12)),
    Case(batch: 2, size: [14, 14], channels: (0, 33, 40)),
    Case(size: [5, 7], channels: (0, 70, 7)),
    Case(batch: 2, size: [1, 5], channels: (0, 600, 100)),
  ]

  /// Convolutions whose results are pooled, of the first two channel counts.
  private static let pooled: [(shape: Case, pool: PoolAttributes)] = [
    (Case(size: [23, 21], channels: (4, 20, 0), strides: [2, 2], pads: [0, 0, 0, 0]), pool([3, 3], strides: [2, 2])),
    (Case(batch: 2, size: [15, 30], channels: (3, 33, 0), kernel: [7, 7], strides: [2, 2], pads: [3, 3, 3, 3]),
      pool([3, 3], strides: [2, 2], pads: [1, 1, 1, 1])),
    (Case(size: [9, 8], channels: (8, 16, 0), kernel: [1, 1], pads: [0, 0, 0, 0]), pool([2, 2], strides: [2, 2], ceil: true)),
    (Case(batch: 3, size: [6, 9], channels: (12, 8, 0), kernel: [1, 1], strides: [2, 1], pads: [0, 0, 0, 0]), pool([2, 3])),
    (Case(size: [11, 40], channels: (6, 65, 0), kernel: [3, 5], dilations: [2, 1], pads: [2, 2, 2, 2]),
      pool([5, 1], strides: [3, 1], pads: [2, 0, 1, 0])),
    (Case(size: [3, 3], channels: (4, 4, 0), pads: [0, 0, 0, 0]), pool([1, 1])),
  ]

  /// First convolutions before depthwise ones of 3x3 pixels.
  private static let stems = [
    Case(size: [17, 13], channels: (3, 24, 10), strides: [2, 2], pads: [0, 0, 1, 1]),
    Case(batch: 2, size: [8, 9], channels: (4, 33, 7), kernel: [5, 3], pads: [2, 1, 2, 1]),
  ]

  private static func pool(_ kernel: [Int], strides: [Int] = [], pads: [Int] = [], ceil: Bool = false)
    -> PoolAttributes
  {
    PoolAttributes(kernel: kernel, strides: strides, pads: pads, dilations: [], ceilMode: ceil, channelsLast: true)
  }

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for type in [DataType.float32, .bfloat16, .uint8] {
      for (number, shape) in cases.enumerated() {
        for stages in [0..<3, 0..<2, 1..<3] {
          result.append(try chain(&make, shape, stages, type, isResidual: number % 2 == 0))
        }
      }
      for (shape, pool) in pooled { result.append(try windows(&make, shape, pool, type)) }
      for shape in stems {
        for pointwise in [false, true] { result.append(try windows(&make, shape, nil, type, pointwise)) }
      }
      for (number, shape) in (cases + wide).enumerated() {
        for scales in 0..<3 {
          result.append(try scaled(&make, shape, scales, type, isResidual: number % 2 == 1))
        }
      }
    }
    return result
  }

  /// Collects the stages of a chain; operand 0 of each is the result before.
  private struct Stages {
    var ops: [any Operator] = []
    var counts: [Int] = []
    var operands: [ProblemMaker.Operand]

    /// Adds an operator with its operands 1 and up.
    mutating func add(_ op: any Operator, _ others: [ProblemMaker.Operand]) {
      ops.append(op)
      counts.append(others.count)
      operands += others
    }

    func problem(_ make: ProblemMaker) throws -> BatteryProblem {
      try make.problem(Chain(ops, operandCounts: counts), operands.map(Optional.some))
    }
  }

  private static func weights(_ type: DataType) -> DataType { type == .uint8 ? .int8 : type }

  private static func chain(
    _ make: inout ProblemMaker, _ shape: Case, _ range: Range<Int>, _ type: DataType,
    isResidual: Bool
  ) throws -> BatteryProblem {
    let (first, between, last) = shape.channels
    var size = shape.size
    var stages = Stages(
      operands: [
        try make.operand(type, [shape.batch] + size + [range.lowerBound == 0 ? first : between])
      ])
    let sum: DataType? = type == .float32 ? nil : type == .bfloat16 ? .float32 : .int32
    for stage in range {
      let isWindow = stage == 1
      let op = Conv(
        strides: isWindow ? shape.strides : [], dilations: isWindow ? shape.dilations : [],
        pads: isWindow ? shape.pads : [], group: isWindow ? between : 1, channelsLast: true,
        sumType: sum, padValue: isWindow && type == .uint8 ? 100 : 0)
      let kernel = isWindow ? shape.kernel : [1, 1]
      let (inputs, outputs) =
        stage == 0 ? (first, between) : isWindow ? (1, between) : (between, last)
      if isWindow {
        let window = try op.window(input: size, kernel: kernel)
        size = window.output
      }
      let weights = try make.constant(Self.weights(type), kernel + [inputs, outputs])
      let depth = kernel.reduce(inputs, *)
      let epilogue = Self.epilogue(type, depth: depth, isResidual: isResidual && stage == 2)
      stages.add(
        Fused(
          anchor: op, anchorInputCount: 2,
          epilogue: Epilogue(epilogue.expression, extraCount: epilogue.extras.count)),
        [weights] + (try make.extras(epilogue, result: [shape.batch] + size + [outputs])))
    }
    return try stages.problem(make)
  }

  /// A bias, a limit, and a tensor if there is one; bytes are rounded.
  private static func epilogue(_ type: DataType, depth: Int, isResidual: Bool) -> BatteryEpilogue {
    let x = ScalarExpr.input(0)
    var extras: [BatteryEpilogue.Extra] = [(.perColumn, .float32)]
    if isResidual { extras.append((.full, type)) }
    guard type == .uint8 else {
      var value = ScalarExpr.min(.max(x + .input(1), .const(0)), .const(6))
      if isResidual { value = value + (type == .bfloat16 ? .cast(.input(2), .float32) : .input(2)) }
      return BatteryEpilogue(type == .bfloat16 ? .cast(value, .bfloat16) : value, extras)
    }
    let factor = 40 / (9000 * Double(depth).squareRoot())
    var value = ScalarExpr.cast(x, .float32) * .const(factor) + .input(1) * .const(20)
    if isResidual { value = value + .cast(.input(2), .float32) * .const(0.5) }
    return BatteryEpilogue(
      ScalarQuantization(steps: value, zeroPoint: 70, type: .uint8).expression, extras)
  }

  /// A convolution of any windows, and pooling or a depthwise convolution, with a 1x1 convolution behind that or not.
  private static func windows(
    _ make: inout ProblemMaker, _ shape: Case, _ pool: PoolAttributes?, _ type: DataType, _ hasLast: Bool = false
  ) throws -> BatteryProblem {
    // Pairs of numbers are multiplied, so pixels have an even count of channels in BF16.
    let inputs = type == .bfloat16 ? shape.channels.0 + shape.channels.0 % 2 : shape.channels.0
    var stages = Stages(operands: [try make.operand(type, [shape.batch] + shape.size + [inputs])])
    let sum: DataType? = type == .float32 ? nil : type == .bfloat16 ? .float32 : .int32
    var size = shape.size
    func add(_ op: Conv, _ kernel: [Int], _ inputs: Int, _ outputs: Int) throws {
      let epilogue = Self.epilogue(type, depth: kernel.reduce(inputs, *), isResidual: false)
      size = try op.window(input: size, kernel: kernel).output
      stages.add(
        Fused(
          anchor: op, anchorInputCount: 2, epilogue: Epilogue(epilogue.expression, extraCount: epilogue.extras.count)),
        [try make.constant(weights(type), kernel + [inputs, outputs])]
          + (try make.extras(epilogue, result: [shape.batch] + size + [outputs])))
    }
    let padValue = type == .uint8 ? 100 : 0
    let between = shape.channels.1
    try add(
      Conv(
        strides: shape.strides, dilations: shape.dilations, pads: shape.pads, channelsLast: true, sumType: sum,
        padValue: padValue), shape.kernel, inputs, between)
    if let pool {
      stages.add(MaxPool(pool), [])
      return try stages.problem(make)
    }
    try add(
      Conv(pads: [1, 1, 1, 1], group: between, channelsLast: true, sumType: sum, padValue: padValue), [3, 3], 1, between)
    if hasLast { try add(Conv(channelsLast: true, sumType: sum), [1, 1], between, shape.channels.2) }
    return try stages.problem(make)
  }

  /// A product with a factor for each channel of each image, for each channel, or for all, before a 1x1 convolution.
  private static func scaled(
    _ make: inout ProblemMaker, _ shape: Case, _ scales: Int, _ type: DataType, isResidual: Bool
  ) throws -> BatteryProblem {
    let pixels = [shape.batch] + shape.size
    let channels = shape.channels.1
    var stages = Stages(operands: [try make.operand(type, pixels + [channels])])
    let factors = [[shape.batch, 1, 1, channels], [channels], []][scales]
    var value = ScalarExpr.input(0)
    if type != .float32 { value = .cast(value, .float32) }
    if type == .uint8 { value = value - .const(9) }
    value = scales == 1 ? .input(1) * value : value * .input(1)
    if type == .bfloat16 { value = .cast(value, .bfloat16) }
    if type == .uint8 {
      value = ScalarQuantization(steps: value, zeroPoint: 60, type: .uint8).expression
    }
    stages.add(
      Pointwise(expression: value, resultType: type), [try make.operand(.float32, factors)])
    let epilogue = Self.epilogue(type, depth: channels, isResidual: isResidual)
    let sum: DataType? = type == .float32 ? nil : type == .bfloat16 ? .float32 : .int32
    let outputs = shape.channels.2
    stages.add(
      Fused(
        anchor: Conv(channelsLast: true, sumType: sum), anchorInputCount: 2,
        epilogue: Epilogue(epilogue.expression, extraCount: epilogue.extras.count)),
      [try make.constant(weights(type), [1, 1, channels, outputs])]
        + (try make.extras(epilogue, result: pixels + [outputs])))
    return try stages.problem(make)
  }
}
