// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The loop over directions, steps and batch that the recurrent operators share; a cell sees one
/// sample of one step.
struct RecurrentRun {
  /// What a cell reads and writes.
  struct CellState {
    let hidden: Int
    let f: CellActivation
    let g: CellActivation
    let h: CellActivation
    fileprivate(set) var previous: [Double]
    fileprivate(set) var cell: [Double]
    var newHidden: [Double]
    var newCell: [Double]
    fileprivate var fromInput: [Double]
    fileprivate var fromHidden: [Double]
    fileprivate let bias: ArraySlice<Double>?
    fileprivate let peepholes: ArraySlice<Double>?
    fileprivate let r: ArraySlice<Double>
    fileprivate let clip: Double

    /// Row `i` of gate `gate`: products, both biases, clipped.
    func gate(_ gate: Int, _ i: Int) -> Double {
      clipped(inputPart(gate, i) + recurrentPart(gate, i) + recurrentBias(gate, i))
    }

    /// The product with W and its bias.
    func inputPart(_ gate: Int, _ i: Int) -> Double {
      let row = gate * hidden + i
      return fromInput[row] + (bias.map { $0[$0.startIndex + row] } ?? 0)
    }

    /// The product with R.
    func recurrentPart(_ gate: Int, _ i: Int) -> Double { fromHidden[gate * hidden + i] }

    /// The product of R with the previous state, each element scaled.
    func recurrentProduct(_ gate: Int, _ i: Int, _ factor: (Int) -> Double) -> Double {
      let start = r.startIndex + (gate * hidden + i) * hidden
      return (0..<hidden).reduce(0.0) { $0 + r[start + $1] * factor($1) * previous[$1] }
    }

    /// The bias that goes with R.
    func recurrentBias(_ gate: Int, _ i: Int) -> Double {
      bias.map { $0[$0.startIndex + $0.count / 2 + gate * hidden + i] } ?? 0
    }

    /// The peephole weight.
    func peephole(_ gate: Int, _ i: Int) -> Double {
      peepholes.map { $0[$0.startIndex + gate * hidden + i] } ?? 0
    }

    private func clipped(_ x: Double) -> Double { clip > 0 ? max(-clip, min(clip, x)) : x }
  }

  private let attributes: RecurrentAttributes
  private let gates: Int
  private let type: DataType
  private let sequence: Int
  private let batch: Int
  private let inputSize: Int
  private let x: [Double]
  private let w: [Double]
  private let r: [Double]
  private let bias: [Double]?
  private let lengths: [Int]
  private let peepholes: [Double]?
  private let activations: [CellActivation]
  private var hiddenState: [Double]
  private var cellState: [Double]

  init(
    _ attributes: RecurrentAttributes, _ inputs: [RuntimeValue?], gates: Int, defaults: [String],
    peephole: Bool
  ) throws(ApusError) {
    _ = try attributes.infer(
      InferenceInputs(types: inputs.map { $0?.type }), gates: gates, stateCount: 1)
    self.attributes = attributes
    self.gates = gates
    let x = try inputs.required(0)
    type = x.dataType
    let isBatchFirst = attributes.layout == 1
    (sequence, batch) = isBatchFirst ? (x.shape[1], x.shape[0]) : (x.shape[0], x.shape[1])
    inputSize = x.shape[2]
    let batchCount = batch
    let hidden = attributes.hiddenSize
    let directions = attributes.directionCount
    func checked(_ index: Int, _ what: String, _ count: Int) throws(ApusError) -> [Double]? {
      guard let tensor = try inputs.optional(index) else { return nil }
      guard tensor.count == count else {
        throw ApusError(.typeMismatch, "\(what) is \(tensor.type), expected \(count) elements")
      }
      return tensor.doubles()
    }
    self.x = isBatchFirst ? Self.swapped(x.doubles(), batch, sequence, inputSize) : x.doubles()
    let depth = x.shape[2]
    guard let w = try checked(1, "W", directions * gates * hidden * depth),
      let r = try checked(2, "R", directions * gates * hidden * hidden)
    else { throw ApusError(.typeMismatch, "W or R is missing") }
    let rows = gates * hidden
    let isTurned = attributes.readsWeightsByInput
    self.w = isTurned ? Self.byRow(w, depth, directions, rows) : w
    self.r = isTurned ? Self.byRow(r, hidden, directions, rows) : r
    bias = try checked(3, "B", directions * 2 * gates * hidden)
    lengths =
      try checked(4, "sequence_lens", batchCount)?.map { Int($0) }
      ?? Array(repeating: sequence, count: batchCount)
    let steps = sequence
    guard lengths.allSatisfy({ $0 >= 0 && $0 <= steps }) else {
      throw ApusError(.execution, "a sequence length is outside 0...\(steps)")
    }
    let stateCount = directions * batchCount * hidden
    let zero = [Double](repeating: 0, count: stateCount)
    func state(_ index: Int, _ what: String) throws(ApusError) -> [Double] {
      guard let values = try checked(index, what, stateCount) else { return zero }
      return isBatchFirst ? Self.swapped(values, batchCount, directions, hidden) : values
    }
    hiddenState = try state(5, "initial_h")
    cellState = peephole ? try state(6, "initial_c") : zero
    peepholes = peephole ? try checked(7, "P", directions * 3 * hidden) : nil
    var functions: [CellActivation] = []
    let given = attributes.activations
    guard given.isEmpty || given.count == directions * defaults.count else {
      throw ApusError(
        .invalidAttribute, "\(given.count) activations, \(directions * defaults.count) are needed")
    }
    var alphas = attributes.activationAlpha[...]
    var betas = attributes.activationBeta[...]
    for index in 0..<(directions * defaults.count) {
      functions.append(
        try CellActivation(
          given.isEmpty ? defaults[index % defaults.count] : given[index], alphas: &alphas,
          betas: &betas))
    }
    activations = functions
  }

  /// `[a, b, n]` to `[b, a, n]`.
  private static func swapped(_ values: [Double], _ a: Int, _ b: Int, _ n: Int) -> [Double] {
    var result = values
    for i in 0..<a {
      for j in 0..<b {
        for k in 0..<n { result[(j * a + i) * n + k] = values[(i * b + j) * n + k] }
      }
    }
    return result
  }

  /// `[inputs, directions, rows]` to `[directions, rows, inputs]`.
  private static func byRow(_ values: [Double], _ inputs: Int, _ directions: Int, _ rows: Int)
    -> [Double]
  {
    var result = values
    for input in 0..<inputs {
      for row in 0..<directions * rows {
        result[row * inputs + input] = values[input * directions * rows + row]
      }
    }
    return result
  }

  /// Runs all steps and returns Y, Y_h and, with a cell, Y_c.
  mutating func evaluate(withCell: Bool, _ cell: (inout CellState) -> Void) throws(ApusError)
    -> [RuntimeValue]
  {
    let hidden = attributes.hiddenSize
    let directions = attributes.directionCount
    var y = [Double](
      repeating: 0, count: try Tensor.checkedCount([sequence, directions, batch, hidden]))
    let perDirection = activations.count / directions
    for direction in 0..<directions {
      let functions = activations[(direction * perDirection)...]
      let f = functions[functions.startIndex]
      let g = perDirection > 1 ? functions[functions.startIndex + 1] : f
      let h = perDirection > 2 ? functions[functions.startIndex + 2] : g
      let rows = gates * hidden
      var state = CellState(
        hidden: hidden, f: f, g: g, h: h, previous: [], cell: [],
        newHidden: Array(repeating: 0, count: hidden), newCell: Array(repeating: 0, count: hidden),
        fromInput: Array(repeating: 0, count: rows), fromHidden: Array(repeating: 0, count: rows),
        bias: bias.map { $0[(direction * 2 * rows)..<((direction + 1) * 2 * rows)] },
        peepholes: peepholes.map { $0[(direction * 3 * hidden)..<((direction + 1) * 3 * hidden)] },
        r: r[(direction * rows * hidden)..<((direction + 1) * rows * hidden)],
        clip: attributes.clip)
      for sample in 0..<batch {
        let home = (direction * batch + sample) * hidden
        state.previous = Array(hiddenState[home..<(home + hidden)])
        state.cell = Array(cellState[home..<(home + hidden)])
        for index in 0..<lengths[sample] {
          let step = attributes.isBackwards(direction) ? lengths[sample] - 1 - index : index
          product(
            w, direction * rows * inputSize, x, (step * batch + sample) * inputSize, inputSize,
            &state.fromInput)
          product(r, direction * rows * hidden, state.previous, 0, hidden, &state.fromHidden)
          cell(&state)
          for i in 0..<hidden {
            // States are stored between steps in the operands' precision.
            state.newHidden[i] = rounded(state.newHidden[i])
            y[((step * directions + direction) * batch + sample) * hidden + i] = state.newHidden[i]
          }
          state.previous = state.newHidden
          if withCell { state.cell = state.newCell }
        }
        hiddenState.replaceSubrange(home..<(home + hidden), with: state.previous)
        cellState.replaceSubrange(home..<(home + hidden), with: state.cell)
      }
    }
    return try results(y, withCell)
  }

  private func rounded(_ value: Double) -> Double { type == .float32 ? Double(Float(value)) : value }

  private func product(
    _ matrix: [Double], _ start: Int, _ vector: [Double], _ from: Int, _ depth: Int,
    _ result: inout [Double]
  ) {
    matrix.withUnsafeBufferPointer { matrix in
      vector.withUnsafeBufferPointer { vector in
        for row in result.indices {
          let base = start + row * depth
          var s0 = 0.0, s1 = 0.0
          var k = 0
          while k + 2 <= depth {
            s0 += matrix[base + k] * vector[from + k]
            s1 += matrix[base + k + 1] * vector[from + k + 1]
            k += 2
          }
          if k < depth { s0 += matrix[base + k] * vector[from + k] }
          result[row] = s0 + s1
        }
      }
    }
  }

  private func results(_ y: [Double], _ withCell: Bool) throws(ApusError) -> [RuntimeValue] {
    let hidden = attributes.hiddenSize
    let directions = attributes.directionCount
    let isBatchFirst = attributes.layout == 1
    var all = y
    if isBatchFirst {
      for s in 0..<sequence {
        for d in 0..<directions {
          for b in 0..<batch {
            for i in 0..<hidden {
              all[((b * sequence + s) * directions + d) * hidden + i] =
                y[((s * directions + d) * batch + b) * hidden + i]
            }
          }
        }
      }
    }
    let shape =
      isBatchFirst ? [batch, sequence, directions, hidden] : [sequence, directions, batch, hidden]
    func state(_ values: [Double]) throws(ApusError) -> RuntimeValue {
      let ordered = isBatchFirst ? Self.swapped(values, directions, batch, hidden) : values
      return .tensor(
        try Tensor(
          ordered, type,
          shape: isBatchFirst ? [batch, directions, hidden] : [directions, batch, hidden]))
    }
    var results: [RuntimeValue] = [
      .tensor(try Tensor(all, type, shape: shape)), try state(hiddenState),
    ]
    if withCell { results.append(try state(cellState)) }
    return results
  }

  static func operations(_ inputs: [TensorType?], _ outputs: [TensorType], gates: Int) -> Double {
    guard let x = inputs.first??.shape, x.count == 3, let y = outputs.first?.shape, y.count == 4 else {
      return 0
    }
    let hidden = Double(y[3])
    return 2 * Double(x[0] * x[1]) * Double(gates) * hidden * (Double(x[2]) + hidden)
  }
}
