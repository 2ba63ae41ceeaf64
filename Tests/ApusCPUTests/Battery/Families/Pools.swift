// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Maximum and average pooling with channels last.
enum Pools: ProblemFamily {
  private static let windows: [(size: [Int], pool: PoolAttributes)] = [
    ([9, 9], attributes([3, 3], strides: [2, 2], pads: [1, 1, 1, 1])),
    ([8, 7], attributes([2, 2], strides: [2, 2], pads: [0, 0, 0, 1])),
    ([7, 7], attributes([7, 7])),
    ([6, 11], attributes([3, 3], pads: [2, 2, 2, 2], dilations: [2, 2])),
    ([5, 17], attributes([1, 3], strides: [1, 1], pads: [0, 1, 0, 1])),
    ([4, 1], attributes([3, 1], strides: [3, 1], ceil: true)),
    ([1, 1], attributes([1, 1])),
    ([13], attributes([3], strides: [2], pads: [1, 1])),
  ]

  private static func attributes(
    _ kernel: [Int], strides: [Int] = [], pads: [Int] = [], dilations: [Int] = [],
    ceil: Bool = false
  ) -> PoolAttributes {
    PoolAttributes(
      kernel: kernel, strides: strides, pads: pads, dilations: dilations, ceilMode: ceil,
      channelsLast: true)
  }

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for type in [DataType.float32, .bfloat16, .uint8, .int8] {
      for channels in [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 130] {
        for (number, window) in windows.enumerated() {
          let x = try make.operand(type, [1 + number % 2] + window.size + [channels])
          result.append(try make.problem(MaxPool(window.pool), [x]))
          guard type.isFloat else { continue }
          for counts in [false, true] {
            result.append(
              try make.problem(AveragePool(window.pool, countIncludePad: counts), [x]))
          }
        }
      }
    }
    return result
  }
}
