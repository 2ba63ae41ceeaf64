// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusOps
import ApusTensor

/// Transposed convolutions in phases.
enum TransposedConvolutions: ProblemFamily {
  private struct Case {
    var batch = 1
    var input: [Int]
    var channels: (Int, Int)
    var kernel: [Int]
    var op: ConvTranspose
  }

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for types in ProductTypeCase.all where types.left == types.right {
      var number = Rotation(Array(0..<types.epilogueCount))
      for shape in cases {
        result.append(try problem(&make, shape, types, epilogue: number.take()))
      }
      for epilogue in 0..<types.epilogueCount {
        result.append(try problem(&make, cases[0], types, epilogue: epilogue))
      }
    }
    return result
  }

  private static func problem(
    _ make: inout ProblemMaker, _ shape: Case, _ types: ProductTypeCase, epilogue: Int
  ) throws -> BatteryProblem {
    var plain = shape.op
    plain.sumType = types.sum
    let group = max(1, plain.group)
    guard let op = PhasedConvTranspose(plain, kernel: shape.kernel) else {
      throw ApusError(.internalError, "\(plain.attributes) has no phases")
    }
    let depth = shape.kernel.reduce(shape.channels.0 / group, *)
    let x = try make.operand(types.left, [shape.batch] + shape.input + [shape.channels.0])
    var weights = try make.constant(
      types.right, [shape.channels.0, shape.channels.1 / group] + shape.kernel,
      scale: types.weightScale(depth: depth))
    weights.tensor = try op.phased(weights.tensor)
    let result = try make.problem(op, [x, weights]).problem.outputs[0].shape
    return try make.problem(
      op, [x, weights], result: result, types.epilogues(depth: depth)[epilogue])
  }

  private static let cases = [
    Case(input: [5, 4], channels: (8, 20), kernel: [2, 2], op: ConvTranspose(strides: [2, 2])),
    Case(
      batch: 2, input: [3, 17], channels: (4, 33), kernel: [4, 4],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1])),
    Case(
      input: [7, 15], channels: (16, 16), kernel: [3, 3],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1], outputPadding: [1, 1])),
    Case(
      input: [4, 4], channels: (12, 70), kernel: [3, 3],
      op: ConvTranspose(strides: [2, 2], pads: [1, 1, 1, 1])),
    Case(
      batch: 3, input: [4, 4], channels: (8, 5), kernel: [3, 3],
      op: ConvTranspose(pads: [1, 1, 1, 1])),
    Case(input: [1, 1], channels: (100, 40), kernel: [4, 4], op: ConvTranspose()),
    Case(
      batch: 2, input: [1, 1], channels: (20, 40), kernel: [4, 4],
      op: ConvTranspose(strides: [4, 4])),
    Case(
      input: [5, 3], channels: (12, 12), kernel: [5, 4],
      op: ConvTranspose(strides: [3, 2], pads: [2, 0, 1, 1], group: 3)),
    Case(
      input: [6, 5], channels: (8, 4), kernel: [3, 3],
      op: ConvTranspose(dilations: [2, 3], pads: [1, 0, 2, 1], group: 2)),
    Case(
      input: [5, 5], channels: (4, 7), kernel: [3, 2],
      op: ConvTranspose(strides: [2, 1], dilations: [3, 1])),
    Case(input: [9], channels: (4, 3), kernel: [5], op: ConvTranspose(strides: [3], pads: [1, 2])),
    Case(
      input: [2, 3, 4], channels: (4, 18), kernel: [3, 2, 3],
      op: ConvTranspose(strides: [2, 2, 1], pads: [1, 0, 1, 0, 0, 1])),
    Case(
      input: [3, 3], channels: (4, 2), kernel: [2, 2],
      op: ConvTranspose(strides: [2, 2], pads: [2, 2, 2, 1])),
    Case(
      input: [3, 3], channels: (4, 8), kernel: [2, 2],
      op: ConvTranspose(strides: [2, 2], outputShape: [8, 9])),
    Case(input: [3, 3], channels: (1400, 3), kernel: [2, 2], op: ConvTranspose(strides: [1, 1])),
    Case(input: [3, 3], channels: (1, 1), kernel: [2, 2], op: ConvTranspose(strides: [1, 1])),
  ]
}
