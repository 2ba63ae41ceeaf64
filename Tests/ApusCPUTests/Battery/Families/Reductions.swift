// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Reductions along rows, down columns, and of whole tensors.
enum Reductions: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    var function = Rotation(Reduce.Function.allCases)
    for (shape, axes) in cases {
      for _ in 0..<4 {
        result.append(try problem(&make, .float32, shape, axes, function.take()))
      }
      for type in [DataType.bfloat16, .uint8, .int8] {
        for function in [Reduce.Function.mean, .sum, .max] {
          result.append(try problem(&make, type, shape, axes, function))
        }
      }
    }
    for function in Reduce.Function.allCases {
      result.append(try problem(&make, .float32, [3, 37], [1], function))
      result.append(try problem(&make, .float32, [5, 37], [0], function))
    }
    return result
  }

  private static func problem(
    _ make: inout ProblemMaker, _ type: DataType, _ shape: [Int], _ axes: [Int],
    _ function: Reduce.Function
  ) throws -> BatteryProblem {
    var x = try make.operand(type, shape)
    if type == .float32 {
      // Products stay normal numbers, and sums are not so near zero that the tolerance, which goes by results, has
      // nothing to do with what was added.
      let (factor, offset) =
        function == .prod
        ? (1.0 / 64, 1.0) : [.sum, .mean, .logSum].contains(function) ? (0.5, 0.75) : (1, 0)
      x.tensor = try Tensor(x.tensor.doubles().map { $0 * factor + offset }, type, shape: shape)
    }
    return try make.problem(
      Reduce(
        function: function, axes: axes, keepDims: shape.count % 2 == 0,
        sumType: type == .float32 ? nil : .float32), [x])
  }

  private static let cases: [([Int], [Int])] =
    [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 1000].flatMap { size in
      [([3, size], [1]), ([5, size], [0]), ([2, 7, size], [1]), ([2, 3, 4, size], [1, 2])]
    } + [
      ([2, 3, 5], [0, 2]), ([2, 3, 4, 5], [1, 3]), ([4, 1, 6], [0, 1, 2]), ([33, 40], [0, 1]),
      ([1, 70_001], [1]), ([9001, 3], [0]), ([2, 129, 129, 3], [1, 2]), ([17], [0]), ([1], [0]),
    ]
}

/// Places of extreme elements.
enum Extrema: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    let shapes: [([Int], Int)] =
      [1, 2, 15, 16, 17, 33, 1000].flatMap { size in
        [([3, size], 1), ([size, 5], 0), ([2, 7, size], 1), ([2, size, 19], 1)]
      } + [([70_001], 0), ([2, 40_000], -1), ([3, 50, 1030], 1)]
    for (shape, axis) in shapes {
      for takesLast in [false, true] {
        // Few different numbers, so that many are equal.
        var x = try make.operand(.float32, shape)
        x.tensor = try Tensor(
          x.tensor.doubles().map { ($0 * 20).rounded() / 4 }, .float32, shape: shape)
        result.append(
          try make.problem(ArgMax(axis: axis, selectLastIndex: takesLast), [x]))
        result.append(
          try make.problem(ArgMin(axis: axis, keepDims: false, selectLastIndex: takesLast), [x]))
      }
    }
    return result
  }
}
