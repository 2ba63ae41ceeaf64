// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import ApusOps
import ApusTensor

/// Products of two computed sides, in batches that broadcast.
enum ComputedProducts: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for (left, right, sum) in sides {
      let types = ProductTypeCase(left: left, right: right, sum: sum)
      var number = Rotation(Array(0..<types.epilogueCount))
      for (a, b) in shapes {
        result.append(
          try problem(&make, types, MatMul(sumType: sum), a, b, epilogue: number.take()))
      }
      for epilogue in 0..<types.epilogueCount {
        result.append(
          try problem(
            &make, types, MatMul(sumType: sum), [2, 15, 20], [2, 20, 33], epilogue: epilogue))
      }
      guard sum != nil else { continue }
      // The right side transposed, and integers that stand for zero.
      for (m, n, k) in transposed {
        for (left, right) in zeros(types) {
          for transposes in [true, false] {
            let op = MatMul(
              sumType: sum, leftZero: left, rightZero: right, transposesRight: transposes)
            result.append(
              try problem(
                &make, types, op, [2, m, k], transposes ? [2, n, k] : [2, k, n],
                epilogue: number.take()))
          }
        }
      }
    }
    return result
  }

  private static let sides: [(DataType, DataType, DataType?)] = [
    (.float32, .float32, nil), (.bfloat16, .bfloat16, .float32), (.uint8, .uint8, .int32),
    (.uint8, .int8, .int32),
  ]

  private static let transposed = [
    (1, 1, 1), (3, 17, 4), (5, 16, 3), (7, 33, 64), (13, 65, 70), (20, 64, 197), (29, 130, 129),
    (2, 15, 66), (19, 8, 19), (9, 40, 39), (4, 128, 8),
  ]

  /// What stands for zero on both sides.
  private static func zeros(_ types: ProductTypeCase) -> [(Int, Int)] {
    switch types.right {
    case .uint8: [(0, 0), (0, 128), (7, 0), (128, 119), (255, 1)]
    case .int8: [(0, 0), (7, 0), (128, -30), (0, 34), (255, 29)]
    default: [(0, 0)]
    }
  }

  /// Of both sides: tile edges, then batches of which one side has fewer.
  private static var shapes: [([Int], [Int])] {
    var depth = Rotation([4, 1, 5, 2, 8, 3, 7, 16, 33, 12, 64, 31])
    var result: [([Int], [Int])] = [
      ([1, 1], [1, 1]), ([2, 1, 3, 13], [1, 4, 13, 21]), ([5, 6], [3, 6, 17]),
      ([3, 5, 300], [300, 40]), ([2, 2, 9, 16], [2, 2, 16, 100]),
    ]
    for tile in GemmTile.candidates(.current) {
      for (rows, columns) in [(-1, 1), (0, 0), (1, -1)] {
        let k = depth.take()
        result.append(
          ([2, max(1, tile.rows + rows), k], [2, k, max(1, tile.columns(.current) + columns)]))
      }
    }
    return result
  }

  private static func problem(
    _ make: inout ProblemMaker, _ types: ProductTypeCase, _ op: MatMul, _ a: [Int], _ b: [Int],
    epilogue: Int
  ) throws -> BatteryProblem {
    let depth = a[a.count - 1]
    let sides = [
      try make.operand(types.left, a),
      try make.operand(types.right, b, scale: types.weightScale(depth: depth)),
    ]
    let shape = try make.problem(op, sides).problem.outputs[0].shape
    return try make.problem(
      op, sides, result: shape, types.epilogues(depth: depth)[epilogue])
  }
}
