// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Layers of LSTM and GRU cells.
enum RecurrentLayers: ProblemFamily {
  private enum Cell: CaseIterable { case lstm, gru, resettingGRU }

  private struct Case {
    var steps = 3
    var batch = 2
    var inputs = 5
    var hidden = 7
    var direction = RecurrentAttributes.Direction.forward
    var hasBias = true
    var hasStates = true
    /// How many of the results are wanted.
    var results = 3
  }

  private static let cases = [
    Case(), Case(steps: 1, batch: 1, inputs: 1, hidden: 1), Case(direction: .bidirectional),
    Case(hasBias: false), Case(hasStates: false, results: 1),
    Case(steps: 5, batch: 1, inputs: 31, hidden: 16, direction: .reverse),
    Case(steps: 2, batch: 17, inputs: 33, hidden: 65, direction: .bidirectional, results: 2),
    Case(steps: 2, batch: 13, inputs: 16, hidden: 15),
    Case(steps: 2, batch: 15, inputs: 17, hidden: 33),
    Case(steps: 1, batch: 1, inputs: 130, hidden: 64),
    Case(steps: 2, batch: 28, inputs: 3, hidden: 8),
  ]

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for cell in Cell.allCases {
      for shape in cases { result.append(try problem(&make, cell, shape)) }
    }
    return result
  }

  private static func problem(_ make: inout ProblemMaker, _ cell: Cell, _ shape: Case) throws
    -> BatteryProblem
  {
    let directions = shape.direction == .bidirectional ? 2 : 1
    let rows = (cell == .lstm ? 4 : 3) * shape.hidden
    var attributes = RecurrentAttributes(hiddenSize: shape.hidden, direction: shape.direction)
    attributes.readsWeightsByInput = true
    let state = [directions, shape.batch, shape.hidden]
    var operands: [ProblemMaker.Operand?] = [
      try make.operand(.float32, [shape.steps, shape.batch, shape.inputs]),
      try make.constant(.float32, [shape.inputs, directions, rows]),
      try make.constant(.float32, [shape.hidden, directions, rows]),
      shape.hasBias ? try make.constant(.float32, [directions, 2 * rows]) : nil,
    ]
    if shape.hasStates {
      operands += [nil, try make.operand(.float32, state)]
      if cell == .lstm { operands.append(try make.operand(.float32, state)) }
    }
    if cell == .lstm {
      return try make.problem(LSTM(attributes), operands, resultCount: shape.results)
    }
    return try make.problem(
      GRU(attributes, linearBeforeReset: cell == .gru), operands, resultCount: min(2, shape.results)
    )
  }
}
