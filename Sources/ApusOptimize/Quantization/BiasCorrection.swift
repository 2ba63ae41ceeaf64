// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Rounded weights are wrong on average, too: `E[(w' - w) x] = (w' - w) E[x]` shifts a channel's results.
/// The bias takes it back (M. Nagel et al., "Data-free quantization through weight equalization and bias
/// correction", 2019).
struct BiasCorrection {
  /// What the bias of each result channel is to change by for a mean of one in each input channel.
  private let shifts: [[Double]]
  private let isConv: Bool

  init(_ weights: Tensor, _ rounded: WeightQuantization.Result, axis: Int) {
    isConv = axis == 0
    let scales = rounded.scales.floats()
    let bytes = rounded.bytes.ints()
    let outputs = weights.shape[axis]
    // [O, C, ...] of a convolution, [C, O] of a matrix.
    let inputs = weights.shape[1 - axis]
    let window = isConv ? weights.shape.dropFirst(2).reduce(1, *) : 1
    var shifts = [[Double]](repeating: [Double](repeating: 0, count: inputs), count: outputs)
    for (index, value) in weights.floats().enumerated() {
      let place = index / window
      let (output, input) =
        isConv ? (place / inputs, place % inputs) : (place % outputs, place / outputs)
      shifts[output][input] += Double(value) - Double(Float(bytes[index]) * scales[output])
    }
    self.shifts = shifts
  }

  /// Adds the correction to a product's result. Nothing happens without a mean for every channel.
  func apply(to id: NodeID, means: [Double], _ graph: inout Graph) throws(ApusError) {
    let node = graph[id]
    let groups = (node.op as? Conv)?.group ?? 1
    guard let inputs = shifts.first?.count, means.count == inputs * groups,
      means.allSatisfy(\.isFinite)
    else { return }
    let perGroup = max(1, shifts.count / groups)
    let change = shifts.enumerated().map { output, row in
      let first = output / perGroup * inputs
      return row.indices.reduce(0.0) { $0 + row[$1] * means[first + $1] }
    }
    let bias = node.inputs.count > 2 ? node.inputs[2].flatMap { graph[$0].constant } : nil
    if isConv {
      guard node.inputs.count < 3 || node.inputs[2] == nil || bias != nil else { return }
      let old = bias?.doubles() ?? Array(repeating: 0, count: change.count)
      let corrected = try Tensor(zip(old, change).map { $0 + $1 }, .float32, shape: [change.count])
      let value = graph.addConstant(graph.uniqueName("\(node.name).bias"), corrected)
      graph.update(id, op: node.op, inputs: Array(node.inputs.prefix(2)) + [value])
      return
    }
    let result = node.outputs[0]
    let readers = Set(graph[result].consumers).sorted()
    guard !graph.isOutput(result) else { return }
    let vector = graph.addConstant(
      graph.uniqueName("\(node.name).bias"), try Tensor(change, .float32, shape: [change.count]))
    let sum = try graph.add(Add(), [result, vector], name: "\(node.name).correct")
    for reader in readers {
      for index in graph[reader].inputs.indices where graph[reader].inputs[index] == result {
        graph.setInput(reader, index, to: sum[0])
      }
    }
  }
}
