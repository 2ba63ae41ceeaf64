// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Constant weights of recurrent cells, `[directions, rows, inputs]`, become `[inputs, directions, rows]`:
/// a step is then a product with a packed right side, as any other product with weights is.
public struct ReadRecurrentWeightsByInput: Pass {
  public let name = "ReadRecurrentWeightsByInput"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try turn(id, &graph, context) { count += 1 }
    }
    return count
  }

  private func turn(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    guard let op = Self.turned(node.op), node.inputs.count >= 3,
      let w = node.inputs[1].flatMap({ graph[$0].constant }), w.rank == 3,
      let r = node.inputs[2].flatMap({ graph[$0].constant }), r.rank == 3,
      w.dataType == .float32, r.dataType == .float32, w.count > 0, r.count > 0,
      context.claim(name, node.name)
    else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    var inputs: [GraphPatch.Reference?] = node.inputs.map { $0.map { .existing($0) } }
    inputs[1] = patch.constant("\(node.name).weights", try Self.byInput(w))
    inputs[2] = patch.constant("\(node.name).recurrent_weights", try Self.byInput(r))
    let results = patch.add(op, inputs, outputCount: node.outputs.count)
    for (old, new) in zip(node.outputs, results) { patch.replace(old, with: new) }
    try patch.apply(to: &graph)
    return true
  }

  /// The same cell reading its weights by input; nil for other operators, and cells that no kernel takes.
  private static func turned(_ op: any Operator) -> (any Operator)? {
    if var cell = op as? LSTM, !cell.recurrent.readsWeightsByInput, cell.isPlain {
      cell.recurrent.readsWeightsByInput = true
      return cell
    }
    if var cell = op as? GRU, !cell.recurrent.readsWeightsByInput, cell.isPlain {
      cell.recurrent.readsWeightsByInput = true
      return cell
    }
    return nil
  }

  private static func byInput(_ weights: Tensor) throws(ApusError) -> Tensor {
    let (directions, rows, inputs) = (weights.shape[0], weights.shape[1], weights.shape[2])
    let result = try Tensor(.float32, shape: [inputs, directions, rows])
    let target = result.mutableBytes.assumingMemoryBound(to: Float.self)
    weights.withElements(of: Float.self) { source in
      for direction in 0..<directions {
        for row in 0..<rows {
          for input in 0..<inputs {
            target[(input * directions + direction) * rows + row] =
              source[(direction * rows + row) * inputs + input]
          }
        }
      }
    }
    return result
  }
}
