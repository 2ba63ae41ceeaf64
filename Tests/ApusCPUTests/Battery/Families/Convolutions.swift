// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import ApusOps
import ApusTensor

/// The sizes of a convolution over one or two axes.
struct ConvolutionCase: Sendable {
  var batch = 1
  var size: [Int]
  /// Channels of the input and of the result.
  var channels: (Int, Int)
  var kernel: [Int]
  var strides: [Int] = []
  var dilations: [Int] = []
  var pads: [Int] = []
  var groups = 1

  /// The problem for these element types.
  func problem(
    _ make: inout ProblemMaker, _ types: ProductTypeCase, epilogue: Int, padValue: Int = 0
  ) throws -> BatteryProblem {
    let op = Conv(
      strides: strides, dilations: dilations, pads: pads, group: groups, channelsLast: true,
      sumType: types.sum, padValue: types.left == .uint8 ? padValue : 0)
    let depth = kernel.reduce(channels.0 / groups, *)
    let operands = [
      try make.operand(types.left, [batch] + size + [channels.0]),
      try make.constant(
        types.right, kernel + [channels.0 / groups, channels.1],
        scale: types.weightScale(depth: depth)),
    ]
    let shape = try make.problem(op, operands).problem.outputs[0].shape
    return try make.problem(op, operands, result: shape, types.epilogues(depth: depth)[epilogue])
  }
}

/// Convolutions that mix channels: at image edges, with steps, dilated, grouped; every epilogue.
enum Convolutions: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for types in ProductTypeCase.all {
      var number = Rotation(Array(0..<types.epilogueCount))
      for shape in cases + large(types) {
        result.append(try shape.problem(&make, types, epilogue: number.take(), padValue: 77))
      }
      for epilogue in 0..<types.epilogueCount {
        for shape in ofEveryEpilogue {
          result.append(try shape.problem(&make, types, epilogue: epilogue))
        }
      }
    }
    return result
  }

  private static let ofEveryEpilogue = [
    ConvolutionCase(size: [4, 5], channels: (8, 33), kernel: [1, 1]),
    ConvolutionCase(size: [5, 4], channels: (6, 20), kernel: [2, 3], pads: [1, 1, 0, 1]),
  ]

  private static let cases = [
    ConvolutionCase(size: [1, 1], channels: (1, 1), kernel: [1, 1]),
    ConvolutionCase(size: [5, 5], channels: (3, 7), kernel: [1, 1]),
    ConvolutionCase(batch: 2, size: [7, 7], channels: (16, 33), kernel: [1, 1]),
    ConvolutionCase(size: [9, 8], channels: (5, 32), kernel: [1, 1], strides: [2, 2]),
    ConvolutionCase(size: [9, 8], channels: (12, 31), kernel: [1, 1], strides: [1, 3]),
    ConvolutionCase(size: [4, 4], channels: (1024, 40), kernel: [1, 1]),
    ConvolutionCase(size: [13, 14], channels: (8, 16), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(
      batch: 2, size: [7, 7], channels: (20, 40), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [6, 31], channels: (3, 17), kernel: [3, 3]),
    ConvolutionCase(size: [3, 3], channels: (300, 20), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(
      size: [23, 19], channels: (3, 16), kernel: [7, 7], strides: [2, 2], pads: [3, 3, 3, 3]),
    ConvolutionCase(
      size: [11, 12], channels: (4, 65), kernel: [3, 3], strides: [2, 2], pads: [0, 0, 1, 1]),
    ConvolutionCase(
      size: [12, 13], channels: (4, 9), kernel: [2, 3], strides: [1, 2], pads: [0, 1, 1, 0]),
    ConvolutionCase(
      size: [9, 10], channels: (4, 8), kernel: [3, 3], dilations: [2, 2], pads: [2, 2, 2, 2]),
    ConvolutionCase(
      size: [9, 9], channels: (12, 18), kernel: [3, 3], pads: [1, 1, 1, 1], groups: 3),
    ConvolutionCase(size: [5, 4], channels: (6, 12), kernel: [1, 1], groups: 2),
    ConvolutionCase(
      size: [5, 4], channels: (4, 8), kernel: [3, 3], pads: [1, 1, 1, 1], groups: 4),
    ConvolutionCase(size: [1, 40], channels: (8, 8), kernel: [1, 3], pads: [0, 1, 0, 1]),
    ConvolutionCase(size: [4, 4], channels: (2, 3), kernel: [4, 4]),
    ConvolutionCase(size: [2, 2], channels: (6, 49), kernel: [5, 5], pads: [3, 3, 3, 3]),
    ConvolutionCase(
      batch: 3, size: [1, 1], channels: (10, 47), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [17], channels: (5, 15), kernel: [3], pads: [1, 1]),
    ConvolutionCase(
      batch: 2, size: [9], channels: (8, 64), kernel: [4], strides: [2], dilations: [2]),
  ]

  /// Sizes for tiles that are offered for many results of short sums only.
  private static func large(_ types: ProductTypeCase) -> [ConvolutionCase] {
    guard types.left == .uint8 || types.left == .bfloat16 else { return [] }
    let channels = types.left == .uint8 ? 3 : 2
    return [
      ConvolutionCase(
        size: [141, 131], channels: (channels, 23), kernel: [3, 3], pads: [1, 1, 1, 1]),
      ConvolutionCase(size: [111, 117], channels: (8, 33), kernel: [1, 1]),
    ]
  }
}

/// Convolutions with a kernel for each channel.
enum DepthwiseConvolutions: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for types in ProductTypeCase.all where types.right != .float16 {
      var number = Rotation(Array(0..<types.epilogueCount))
      for channels in [2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 70] {
        for shape in cases(channels) {
          result.append(try shape.problem(&make, types, epilogue: number.take(), padValue: 50))
        }
      }
      for epilogue in 0..<types.epilogueCount {
        for channels in [16, 21] {
          let shape = ConvolutionCase(
            size: [5, 6], channels: (channels, channels), kernel: [3, 3], pads: [1, 1, 1, 1],
            groups: channels)
          result.append(try shape.problem(&make, types, epilogue: epilogue, padValue: 9))
        }
        // So wide that its channels, or its columns, are computed in blocks.
        for (width, channels) in [(61, 77), (130, 64)] {
          let shape = ConvolutionCase(
            batch: 2, size: [5, width], channels: (channels, channels), kernel: [3, 3], pads: [1, 1, 1, 1],
            groups: channels)
          result.append(try shape.problem(&make, types, epilogue: epilogue, padValue: 9))
        }
      }
    }
    return result
  }

  private static func cases(_ channels: Int) -> [ConvolutionCase] {
    let both = (channels, channels)
    let shapes = [
      ConvolutionCase(size: [6, 7], channels: both, kernel: [3, 3], pads: [1, 1, 1, 1]),
      ConvolutionCase(
        batch: 2, size: [6, 11], channels: both, kernel: [3, 3], strides: [2, 2],
        pads: [0, 0, 1, 1]),
      ConvolutionCase(size: [5, 17], channels: both, kernel: [5, 5], pads: [2, 2, 2, 2]),
      ConvolutionCase(size: [3, 2], channels: both, kernel: [5, 5], pads: [2, 2, 2, 2]),
      ConvolutionCase(
        size: [9, 8], channels: both, kernel: [3, 2], dilations: [2, 3], pads: [2, 3, 2, 0]),
      ConvolutionCase(size: [1, 1], channels: both, kernel: [1, 1]),
      ConvolutionCase(size: [13], channels: both, kernel: [4], strides: [3], pads: [2, 1]),
    ]
    return shapes.map { shape in
      var shape = shape
      shape.groups = channels
      return shape
    }
  }
}

/// 3x3 convolutions with steps of one: around the edges of transformed tiles.
enum WinogradConvolutions: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for types in ProductTypeCase.all {
      var number = Rotation(Array(0..<types.epilogueCount))
      for shape in cases {
        for _ in 0..<2 {
          result.append(try shape.problem(&make, types, epilogue: number.take(), padValue: 128))
        }
      }
      let shape = ConvolutionCase(
        size: [5, 6], channels: (16, 24), kernel: [3, 3], pads: [1, 1, 1, 1])
      for epilogue in 0..<types.epilogueCount {
        result.append(try shape.problem(&make, types, epilogue: epilogue))
      }
    }
    return result
  }

  private static let cases = [
    ConvolutionCase(size: [8, 8], channels: (16, 16), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(
      batch: 2, size: [7, 7], channels: (20, 40), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [14, 13], channels: (33, 17), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [6, 31], channels: (8, 9), kernel: [3, 3]),
    ConvolutionCase(size: [3, 3], channels: (8, 8), kernel: [3, 3]),
    ConvolutionCase(size: [1, 1], channels: (10, 12), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [2, 9], channels: (130, 8), kernel: [3, 3], pads: [2, 2, 2, 2]),
    ConvolutionCase(size: [5, 11], channels: (8, 70), kernel: [3, 3], pads: [0, 1, 2, 0]),
    ConvolutionCase(
      batch: 3, size: [6, 6], channels: (24, 33), kernel: [3, 3], pads: [1, 1, 1, 1]),
    ConvolutionCase(size: [4, 5], channels: (31, 63), kernel: [3, 3], pads: [1, 1, 1, 1]),
  ]
}
