// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Layers of LSTM and GRU cells with constant weights.
struct RecurrentTactic: Tactic {
  let name = "cpu.recurrent.f32"
  let source = "jit"
  let isa: ISA
  let pool: ThreadPool

  private func read(_ problem: Problem) -> Result<RecurrentPlan.Shape, NativeRefusal> {
    let recurrent: RecurrentAttributes
    let cell: RecurrentPlan.Cell
    switch problem.op {
    case let op as LSTM where op.isPlain: (recurrent, cell) = (op.recurrent, .lstm)
    case let op as GRU where op.isPlain:
      (recurrent, cell) = (op.recurrent, op.linearBeforeReset ? .gru : .resettingGRU)
    default: return .failure("no recurrent cell with the usual activations")
    }
    guard recurrent.readsWeightsByInput else { return .failure("weights are computed") }
    let inputs = problem.inputs
    guard inputs.count >= 3, let x = inputs[0], let w = inputs[1], let r = inputs[2],
      w.constant != nil, r.constant != nil, inputs.count < 5 || inputs[4] == nil,
      inputs.count < 8 || inputs[7] == nil
    else { return .failure("sequences of different lengths, or peepholes") }
    guard (inputs + problem.outputs.map(Optional.some)).allSatisfy({ $0 == nil || $0?.dataType == .float32 })
    else { return .failure("not of single precision") }
    let directions = recurrent.directionCount
    let rows = (cell == .lstm ? 4 : 3) * recurrent.hiddenSize
    let states = directions * x.shape[1] * recurrent.hiddenSize
    guard x.count > 0, w.shape == [x.shape[2], directions, rows],
      r.shape == [recurrent.hiddenSize, directions, rows],
      inputs.count < 4 || inputs[3] == nil || inputs[3]?.count == 2 * directions * rows,
      inputs.dropFirst(5).prefix(2).allSatisfy({ $0 == nil || $0?.count == states })
    else { return .failure("operands of other sizes") }
    return .success(
      RecurrentPlan.Shape(
        cell: cell, steps: x.shape[0], batch: x.shape[1], inputs: x.shape[2],
        hidden: recurrent.hiddenSize,
        isBackwards: (0..<directions).map(recurrent.isBackwards)))
  }

  func support(_ problem: Problem) -> Support {
    switch read(problem) {
    case .success: .yes
    case .failure(let refusal): .no(because: refusal.reason)
    }
  }

  func configurations(_ problem: Problem) -> [TacticConfiguration] {
    GemmTile.candidates(isa).map { ["mr": $0.rows, "nv": $0.vectors] }
  }

  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout] {
    var result: [Int: PackedLayout] = [:]
    for index in [1, 2] {
      guard let shape = problem.inputs[index]?.shape, shape.count == 3 else { return [:] }
      // Gates whose products are made at different times are matrices of their own.
      let gates = index == 2 && (problem.op as? GRU)?.linearBeforeReset == false ? 3 : 1
      result[index] = PackedLayout(
        batch: shape[1] * gates, rows: shape[0], columns: shape[2] / gates,
        width: GemmTile(configuration).columns(isa))
    }
    return result
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    guard case .success(let shape) = read(problem) else { return .infinity }
    let tile = GemmTile(configuration)
    let rows = (shape.cell == .lstm ? 4 : 3) * shape.hidden
    return GemmEstimate.seconds(
      rows: shape.steps * shape.batch, columns: rows, depth: shape.inputs, stride: shape.inputs,
      tile: tile, isa: isa)
      + Double(shape.steps)
      * GemmEstimate.seconds(
        rows: shape.batch, columns: rows, depth: shape.hidden, stride: shape.hidden, tile: tile,
        isa: isa)
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard case .success(let shape) = read(problem) else {
      throw ApusError(.internalError, "not a recurrent layer")
    }
    let plan = try RecurrentPlan(shape, tile: GemmTile(configuration), isa: isa)
    return RecurrentKernel(
      plan: plan, given: problem.inputs.map { $0 != nil }, outputCount: problem.outputs.count,
      pool: pool)
  }
}

struct RecurrentKernel: Kernel {
  let plan: RecurrentPlan
  /// Which operands are there.
  let given: [Bool]
  let outputCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    func operand(_ index: Int) -> UnsafeRawPointer? {
      index < given.count && given[index] ? arguments[index].pointer : nil
    }
    func result(_ index: Int) -> UnsafeMutableRawPointer? {
      index < outputCount ? arguments[given.count + index].mutablePointer : nil
    }
    guard let x = operand(0), let w = operand(1), let r = operand(2), let y = result(0) else { return }
    plan.run(
      RecurrentPlan.Operands(
        x: x, weights: w, recurrentWeights: r,
        bias: operand(3)?.assumingMemoryBound(to: Float.self), hidden: operand(5), cell: operand(6),
        y: y, lastHidden: result(1), lastCell: result(2)),
      workspace: arguments[given.count + outputCount].mutablePointer, pool: pool)
  }
}
