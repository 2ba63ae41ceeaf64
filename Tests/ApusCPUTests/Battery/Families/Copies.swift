// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Movements of elements of every size.
enum Copies: ProblemFamily {
  private static let types: [DataType] = [.float32, .uint8, .bfloat16, .int64]

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for type in types {
      for width in [1, 3, 8, 17, 64, 130] {
        result += try problems(&make, type, width)
      }
    }
    return result
  }

  private static func problems(_ make: inout ProblemMaker, _ type: DataType, _ width: Int) throws
    -> [BatteryProblem]
  {
    func integers(_ values: [Int64]) throws -> ProblemMaker.Operand {
      ProblemMaker.Operand(
        tensor: try Tensor(values, .int64, shape: [values.count]), isConstant: true)
    }
    let x = try make.operand(type, [3, 4, width])
    return [
      try make.problem(
        Concat(axis: 2),
        [x, try make.operand(type, [3, 4, 1]), try make.operand(type, [3, 4, 5])]),
      try make.problem(Concat(axis: 0), [x, try make.operand(type, [1, 4, width])]),
      try make.problem(Split(axis: 1, numOutputs: 2), [x], resultCount: 2),
      try make.problem(Flatten(axis: 1), [x]),
      try make.problem(
        Expand(), [try make.operand(type, [3, 1, width]), try integers([2, 3, 5, Int64(width)])]),
      try make.problem(Tile(), [x, try integers([2, 1, 3])]),
      try make.problem(
        Slice(),
        [
          x, try integers([2, 1]), try integers([-4, 4]), try integers([0, 1]),
          try integers([-1, 2]),
        ]),
      try make.problem(Pad(), [x, try integers([0, 1, 2, 1, 0, 3])]),
    ] + (try [0, 1, 3].map { fill in
      try make.problem(
        Pad(),
        [
          try make.operand(type, [2, 3, 5, width]), try integers([0, 1, 1, 2, 1, 0, 3, 1]),
          ProblemMaker.Operand(tensor: try Tensor([Int64(fill)], type, shape: []), isConstant: true),
        ])
    }) + [
      try make.problem(
        Pad(mode: .reflect),
        [try make.operand(type, [3, 5, width]), try integers([1, 2, 0, 1, 3, 0])]),
      try make.problem(Transpose(permutation: [1, 0, 2]), [x]),
      try make.problem(Transpose(permutation: [2, 1, 0]), [x]),
      try make.problem(DepthToSpace(blockSize: 2), [try make.operand(type, [1, 8, 3, width])]),
    ]
  }
}

/// Exchanges of two axes: planes and pixels, around the edges of the blocks that are exchanged in registers.
enum Transpositions: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    let sizes = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65]
    for (number, rows) in sizes.enumerated() {
      for columns in [
        sizes[(number * 7 + 3) % sizes.count], sizes[(number * 4 + 8) % sizes.count], 300,
      ] {
        for type in [DataType.float32, .int32, .uint8] {
          result.append(
            try make.problem(
              Transpose(permutation: [1, 0]), [try make.operand(type, [rows, columns])]))
          result.append(
            try make.problem(
              Transpose(permutation: [0, 2, 1]), [try make.operand(type, [3, rows, columns])]))
        }
      }
    }
    for planes in 1...5 {
      for pixels in [[1, 1], [3, 5], [4, 4], [1, 17], [7, 9], [31, 33], [130, 127]] {
        for type in [DataType.float32, .uint8] {
          result.append(
            try make.problem(
              Transpose(permutation: [0, 2, 3, 1]), [try make.operand(type, [2, planes] + pixels)]))
        }
        let x = try make.operand(.float32, [2, planes] + pixels)
        result.append(
          try make.problem(PlanesToPixels(channels: (planes + 1) / 2 * 2, to: .bfloat16), [x]))
      }
    }
    return result
  }
}

/// Rows of tables by index.
enum Gathers: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for type in [DataType.float32, .uint8, .bfloat16, .int64] {
      for width in [1, 7, 16, 33] {
        for index in [DataType.int64, .int32] {
          // Of both ends, from the front and from behind.
          let values: [Int64] = [0, 4, -1, -5, 2, 2]
          let indices = ProblemMaker.Operand(tensor: try Tensor(values, index, shape: [2, 3]))
          result.append(
            try make.problem(Gather(), [try make.operand(type, [5, width]), indices]))
          result.append(
            try make.problem(Gather(axis: 1), [try make.operand(type, [3, 5, width]), indices]))
          result.append(
            try make.problem(Gather(axis: -1), [try make.operand(type, [width, 5]), indices]))
        }
      }
    }
    return result
  }
}
