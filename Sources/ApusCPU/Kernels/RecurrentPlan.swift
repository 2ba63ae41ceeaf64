// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// A recurrent layer of LSTM or GRU cells in single precision: one product for the inputs of all steps, then
/// for every step a small product with the state before and a loop over the cells.
package final class RecurrentPlan: Sendable {
  /// What a cell computes.
  package enum Cell: Sendable {
    case lstm
    /// The reset gate applied behind the product with the state.
    case gru
    /// The reset gate applied to the state before its product.
    case resettingGRU

    var gates: Int { self == .lstm ? 4 : 3 }
  }

  /// The sizes of a layer.
  package struct Shape: Sendable {
    package var cell: Cell
    package var steps: Int
    package var batch: Int
    package var inputs: Int
    package var hidden: Int
    /// For each direction, whether the sequence is read from its end.
    package var isBackwards: [Bool]

    package init(
      cell: Cell, steps: Int, batch: Int, inputs: Int, hidden: Int, isBackwards: [Bool]
    ) {
      self.cell = cell
      self.steps = steps
      self.batch = batch
      self.inputs = inputs
      self.hidden = hidden
      self.isBackwards = isBackwards
    }

    var rows: Int { cell.gates * hidden }
  }

  /// Where the operands and results of a run lie; states and biases may be missing.
  package struct Operands {
    package var x: UnsafeRawPointer
    package var weights: UnsafeRawPointer
    package var recurrentWeights: UnsafeRawPointer
    package var bias: UnsafePointer<Float>?
    package var hidden: UnsafeRawPointer?
    package var cell: UnsafeRawPointer?
    package var y: UnsafeMutableRawPointer
    package var lastHidden: UnsafeMutableRawPointer?
    package var lastCell: UnsafeMutableRawPointer?

    package init(
      x: UnsafeRawPointer, weights: UnsafeRawPointer, recurrentWeights: UnsafeRawPointer,
      bias: UnsafePointer<Float>?, hidden: UnsafeRawPointer?, cell: UnsafeRawPointer?,
      y: UnsafeMutableRawPointer, lastHidden: UnsafeMutableRawPointer?,
      lastCell: UnsafeMutableRawPointer?
    ) {
      self.x = x
      self.weights = weights
      self.recurrentWeights = recurrentWeights
      self.bias = bias
      self.hidden = hidden
      self.cell = cell
      self.y = y
      self.lastHidden = lastHidden
      self.lastCell = lastCell
    }
  }

  /// Scratch memory that a run needs.
  package let workspaceByteCount: Int
  private let shape: Shape
  private let fromInputs: GemmPlan
  private let fromState: GemmPlan
  /// The candidate from the state behind its reset gate, where that is a product of its own.
  private let fromReset: GemmPlan?
  /// The new cell state of an LSTM or the reset state of a GRU, if any, and the new hidden state.
  private let kernels: [PointwiseKernel]
  /// Bytes of the packed weights of one direction.
  private let weightBytes: (input: Int, state: Int)
  /// Where the parts of the workspace start, in elements.
  private let places: (gates: Int, cell: Int, zeros: Int, bias: Int)

  /// Plans a layer.
  ///
  /// - Throws: `not-yet-supported` where there is no generated code.
  package init(_ shape: Shape, tile: GemmTile, isa: ISA = .current) throws(ApusError) {
    self.shape = shape
    let (rows, batch, hidden) = (shape.rows, shape.batch, shape.hidden)
    let sum = ScalarExpr.input(0) + .input(1)
    fromInputs = try GemmPlan(
      m: shape.steps * batch, n: rows, k: shape.inputs, lda: shape.inputs, ldc: rows, tile: tile,
      isa: isa, epilogue: sum, operands: [.perColumn])
    let width = tile.columns(isa)
    let gateBytes = PackedMatrix.byteCount(k: hidden, n: hidden, nr: width)
    func products(
      _ columns: Int, _ epilogue: ScalarExpr, addsInputs: Bool, gates: Int = 1
    ) throws(ApusError) -> GemmPlan {
      try GemmPlan(
        m: batch, n: columns, k: hidden, lda: hidden, ldc: rows, tile: tile, isa: isa,
        epilogue: epilogue, operands: addsInputs ? [.full] : [],
        batch: (0..<gates).map { GemmPlan.BatchMember(b: $0 * gateBytes / 4, c: $0 * hidden) })
    }
    func kernel(_ expression: ScalarExpr, _ count: Int) throws(ApusError) -> PointwiseKernel {
      try PointwiseKernel(
        expression, operands: Array(repeating: .contiguous, count: count), isa: isa)
    }
    func sigmoid(_ x: ScalarExpr) -> ScalarExpr { .unary(.sigmoid, x) }
    func tanh(_ x: ScalarExpr) -> ScalarExpr { .unary(.hyperbolicTangent, x) }
    let i = (0..<8).map(ScalarExpr.input)
    switch shape.cell {
    case .lstm:
      fromState = try products(rows, sum, addsInputs: true)
      fromReset = nil
      // Input, forget and cell gate, and the cell state; output gate and new cell state.
      kernels = [
        try kernel(sigmoid(i[1]) * i[3] + sigmoid(i[0]) * tanh(i[2]), 4),
        try kernel(sigmoid(i[0]) * tanh(i[1]), 2),
      ]
    case .gru:
      fromState = try products(rows, i[0], addsInputs: false)
      fromReset = nil
      // Update, reset and hidden parts from the input, the same from the state, a bias, the state.
      let update = sigmoid(i[0] + i[3])
      let candidate = tanh(i[2] + sigmoid(i[1] + i[4]) * (i[5] + i[6]))
      kernels = [try kernel(candidate + update * (i[7] - candidate), 8)]
    case .resettingGRU:
      // Products give finished gates: update and reset, then the candidate.
      fromState = try products(hidden, sigmoid(sum), addsInputs: true, gates: 2)
      fromReset = try products(hidden, tanh(sum), addsInputs: true)
      // Reset gate and state; update gate, candidate and state.
      kernels = [try kernel(i[0] * i[1], 2), try kernel(i[1] + i[0] * (i[2] - i[1]), 3)]
    }
    weightBytes = (
      PackedMatrix.byteCount(k: shape.inputs, n: rows, nr: width),
      shape.cell == .resettingGRU
        ? 3 * gateBytes : PackedMatrix.byteCount(k: hidden, n: rows, nr: width)
    )
    let gates = shape.steps * batch * rows
    let cell = gates + batch * rows
    let zeros = cell + batch * hidden
    let bias = zeros + batch * hidden
    places = (gates, cell, zeros, bias)
    workspaceByteCount = 4 * (bias + rows)
  }

  /// Runs all steps of all directions.
  package func run(_ operands: Operands, workspace: UnsafeMutableRawPointer, pool: ThreadPool) {
    let memory = workspace.assumingMemoryBound(to: Float.self)
    for direction in shape.isBackwards.indices { run(direction, operands, memory, pool) }
  }

  private func run(
    _ direction: Int, _ o: Operands, _ memory: UnsafeMutablePointer<Float>, _ pool: ThreadPool
  ) {
    let (rows, batch, hidden) = (shape.rows, shape.batch, shape.hidden)
    let stateCount = batch * hidden
    let directions = shape.isBackwards.count
    let bias = o.bias.map { $0 + direction * 2 * rows }
    let sums = memory + places.bias
    // The reset gate of a GRU stands before the hidden part's second bias.
    let both = shape.cell == .gru ? 2 * hidden : rows
    for row in 0..<rows { sums[row] = bias.map { $0[row] + (row < both ? $0[rows + row] : 0) } ?? 0 }
    let zeros = memory + places.zeros
    zeros.update(repeating: 0, count: stateCount)
    // The inputs' products stand first.
    let inputs = memory
    withUnsafePointer(to: UnsafeRawPointer(sums)) { operand in
      fromInputs.run(
        a: o.x, b: o.weights + direction * weightBytes.input, c: inputs, operands: operand, pool: pool)
    }
    let cell = memory + places.cell
    let first = direction * stateCount * 4
    if let start = o.cell {
      cell.update(from: (start + first).assumingMemoryBound(to: Float.self), count: stateCount)
    } else {
      cell.update(repeating: 0, count: stateCount)
    }
    var state = o.hidden.map { $0 + first } ?? UnsafeRawPointer(zeros)
    for index in 0..<shape.steps {
      let step = shape.isBackwards[direction] ? shape.steps - 1 - index : index
      let y = o.y + (step * directions + direction) * stateCount * 4
      let part = inputs + step * batch * rows
      let gates = memory + places.gates
      let stateWeights = o.recurrentWeights + direction * weightBytes.state
      withUnsafePointer(to: UnsafeRawPointer(part)) { operand in
        fromState.run(
          a: state, b: stateWeights, c: gates, operands: shape.cell == .gru ? nil : operand,
          pool: pool)
      }
      if let fromReset {
        // The place of a cell's state is free: there is none.
        stepReset(gates, state, reset: cell, pool)
        withUnsafePointer(to: UnsafeRawPointer(part + 2 * hidden)) { operand in
          fromReset.run(
            a: cell, b: stateWeights + weightBytes.state / 3 * 2, c: gates + 2 * hidden,
            operands: operand, pool: pool)
        }
      }
      for member in 0..<batch {
        let place = y + member * hidden * 4
        let before = state + member * hidden * 4
        switch shape.cell {
        case .lstm: stepLSTM(gates + member * rows, cell + member * hidden, place, pool)
        case .gru:
          stepGRU(
            part + member * rows, gates + member * rows,
            bias.map { $0 + rows + 2 * hidden } ?? UnsafePointer(zeros), before, place, pool)
        case .resettingGRU: mix(gates + member * rows, before, place, pool)
        }
      }
      state = UnsafeRawPointer(y)
    }
    o.lastHidden.map { ($0 + first).copyMemory(from: state, byteCount: stateCount * 4) }
    o.lastCell.map { ($0 + first).copyMemory(from: cell, byteCount: stateCount * 4) }
  }

  /// Gates lie in ONNX's order: input, output, forget, cell.
  private func stepLSTM(
    _ gates: UnsafePointer<Float>, _ cell: UnsafeMutablePointer<Float>, _ y: UnsafeMutableRawPointer,
    _ pool: ThreadPool
  ) {
    let hidden = shape.hidden
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 4) { operands in
      guard let list = operands.baseAddress else { return }
      list[0] = UnsafeRawPointer(gates)
      list[1] = UnsafeRawPointer(gates + 2 * hidden)
      list[2] = UnsafeRawPointer(gates + 3 * hidden)
      list[3] = UnsafeRawPointer(cell)
      kernels[0].run(list, result: cell, count: hidden, pool: pool)
      list[0] = UnsafeRawPointer(gates + hidden)
      list[1] = UnsafeRawPointer(cell)
      kernels[1].run(list, result: y, count: hidden, pool: pool)
    }
  }

  /// Gates lie in ONNX's order: update, reset, hidden.
  private func stepGRU(
    _ inputs: UnsafePointer<Float>, _ products: UnsafePointer<Float>, _ bias: UnsafePointer<Float>,
    _ state: UnsafeRawPointer, _ y: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) {
    let hidden = shape.hidden
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 8) { operands in
      guard let list = operands.baseAddress else { return }
      for gate in 0..<3 {
        list[gate] = UnsafeRawPointer(inputs + gate * hidden)
        list[3 + gate] = UnsafeRawPointer(products + gate * hidden)
      }
      list[6] = UnsafeRawPointer(bias)
      list[7] = state
      kernels[0].run(list, result: y, count: hidden, pool: pool)
    }
  }

  /// Multiplies the state of every member with its reset gate.
  private func stepReset(
    _ gates: UnsafePointer<Float>, _ state: UnsafeRawPointer, reset: UnsafeMutablePointer<Float>,
    _ pool: ThreadPool
  ) {
    let hidden = shape.hidden
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 2) { operands in
      guard let list = operands.baseAddress else { return }
      for member in 0..<shape.batch {
        list[0] = UnsafeRawPointer(gates + member * shape.rows + hidden)
        list[1] = state + member * hidden * 4
        kernels[0].run(list, result: reset + member * hidden, count: hidden, pool: pool)
      }
    }
  }

  /// The new state of one member: its update gate between the candidate and the state before.
  private func mix(
    _ gates: UnsafePointer<Float>, _ state: UnsafeRawPointer, _ y: UnsafeMutableRawPointer,
    _ pool: ThreadPool
  ) {
    let hidden = shape.hidden
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 3) { operands in
      guard let list = operands.baseAddress else { return }
      list[0] = UnsafeRawPointer(gates)
      list[1] = UnsafeRawPointer(gates + 2 * hidden)
      list[2] = state
      kernels[1].run(list, result: y, count: hidden, pool: pool)
    }
  }
}
