// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import ApusGraph
import ApusOps
import ApusTensor

/// Softmax and layer normalisation of short and long rows.
enum Rows: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = try fused(&make)
    let widths = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 129, 300, 1025]
    for (number, width) in widths.enumerated() {
      let shape = number % 2 == 0 ? [3, width] : [2, 1 + number, width]
      result += try problems(&make, shape)
    }
    // Few long rows are cut into parts.
    for shape in [[1, 16384], [2, 16385], [3, 20011], [1, 24575], [16, 16391]] {
      result += try problems(&make, shape)
    }
    return result
  }

  /// With what comes before and behind.
  private static func fused(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    let epilogues = BatteryEpilogue.all(.float32, spread: 1).filter {
      $0.map { $0.extras.count <= 2 } ?? true
    }
    var epilogue = Rotation(epilogues)
    // One plus the error function of a number far below zero is what rounding leaves of it.
    var forLogarithms = Rotation(
      epilogues.filter { epilogue in
        !(epilogue?.expression.contains { if case .unary(.errorFunction, _) = $0 { true } else { false } }
          ?? false)
      })
    let widths = [1, 5, 8, 15, 16, 17, 33, 64, 100, 128, 257, 768, 1025, RowKernel.scratchColumns + 1]
    for (number, width) in widths.enumerated() {
      let shape = [1 + number % 3, 2, 1 + number % 4, width]
      for mask in [[shape[0], 1, 1, width], [width], shape, [shape[0], 2, 1, width], []] {
        let x = try make.operand(number % 2 == 0 ? .uint8 : .float32, shape)
        let value = number % 2 == 0 ? ScalarExpr.cast(.input(0), .float32) * .const(0.02) : .input(0)
        let operands = [x, try make.operand(.float32, mask)]
        let line = [try make.constant(.float32, [width]), try make.operand(.float32, [width])]
        for anchor in [Softmax(), LogSoftmax(), LayerNormalization()] as [any Operator] {
          let op = Prologued(anchor: anchor, prologue: value + .input(1), prologueInputCount: 2)
          let all = operands + (anchor is LayerNormalization ? line : [])
          let behind = anchor is LogSoftmax ? forLogarithms.take() : epilogue.take()
          result.append(try make.problem(op, all, result: shape, behind))
        }
      }
      let x = try make.operand(.float32, shape, scale: 3)
      result.append(try make.problem(Softmax(), [x], result: shape, epilogue.take()))
    }
    return result
  }

  private static func problems(_ make: inout ProblemMaker, _ shape: [Int]) throws
    -> [BatteryProblem]
  {
    let x = try make.operand(.float32, shape, scale: 5)
    let width = [shape[shape.count - 1]]
    let scale = try make.constant(.float32, width)
    let bias = try make.operand(.float32, width)
    return [
      try make.problem(Softmax(), [x]),
      try make.problem(LogSoftmax(axis: shape.count - 1), [x]),
      try make.problem(LayerNormalization(), [x, scale, bias]),
      try make.problem(LayerNormalization(epsilon: 0.1), [x, scale]),
      try make.problem(
        LayerNormalization(axis: -2),
        [
          x, try make.constant(.float32, Array(shape.suffix(2))),
          try make.constant(.float32, Array(shape.suffix(2))),
        ]),
    ]
  }
}

/// Normalisation across neighbouring channels.
enum NeighbourNorms: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    var epilogue = Rotation(
      BatteryEpilogue.all(.float32, spread: 1).filter { $0?.extras.isEmpty ?? true })
    for channels in [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 192] {
      for (size, beta) in [(5, 0.75), (2, 0.75), (1, 0.5), (6, 0.5), (17, 1.25)] {
        let x = try make.operand(.float32, [2, 3, 2, channels])
        let op = LRN(size: size, alpha: 1.5, beta: beta, bias: 1.25, channelsLast: true)
        result.append(try make.problem(op, [x], result: x.tensor.shape, epilogue.take()))
      }
    }
    return result
  }
}
