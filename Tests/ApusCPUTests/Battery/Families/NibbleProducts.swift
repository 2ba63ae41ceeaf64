// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Products with constant weights of four bits: around the edges of panels, words and blocks.
enum NibbleProducts: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    let epilogues = BatteryEpilogue.all(.float32, spread: 2)
    var number = Rotation(Array(0..<epilogues.count))
    var block = Rotation([8, 32, 16, 128])
    var form = Rotation([(false, false), (true, false), (false, true), (true, true), (true, true)])
    for (m, n, k) in sizes {
      for _ in 0..<2 {
        let (half, zeros) = form.take()
        result.append(
          try problem(
            &make, m, n, k, block: block.take(), half: half, zeros: zeros,
            epilogues[number.take()]))
      }
    }
    for epilogue in epilogues {
      for m in [3, 50] {
        result.append(
          try problem(&make, m, 37, 70, block: 32, half: true, zeros: true, epilogue))
      }
    }
    return result
  }

  private static let sizes = [
    (1, 1, 1), (1, 1, 8), (1, 16, 32), (1, 17, 33), (1, 63, 40), (1, 65, 40), (2, 64, 31),
    (3, 15, 9),
    (3, 100, 64), (4, 33, 100), (4, 31, 7), (5, 130, 1030), (6, 48, 15), (7, 48, 257), (13, 63, 96),
    (30, 64, 520), (29, 20, 7), (47, 32, 24), (48, 33, 24), (49, 129, 17), (130, 70, 1100),
  ]

  private static func problem(
    _ make: inout ProblemMaker, _ m: Int, _ n: Int, _ k: Int, block: Int, half: Bool, zeros: Bool,
    _ epilogue: BatteryEpilogue?
  ) throws -> BatteryProblem {
    let scales = [(k + block - 1) / block, n]
    var operands: [ProblemMaker.Operand?] = [
      try make.operand(.float32, [m, k]), try make.constant(.uint4, [k, n]),
      try make.constant(
        half ? .float16 : .float32, scales,
        scale: 0.5 / Double(k).squareRoot()),
    ]
    if zeros {
      // Zero points are numbers of four bits, too, in a byte each.
      var zero = try make.constant(.uint4, scales)
      zero.tensor = try Tensor(zero.tensor.integers(), .uint8, shape: scales)
      operands.append(zero)
    }
    return try make.problem(BlockQuantizedMatMul(block: block), operands, result: [m, n], epilogue)
  }
}
