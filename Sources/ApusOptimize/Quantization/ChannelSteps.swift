// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// A network's input in bytes with a step and a zero of its own for each channel, without a kernel that knows of
/// them:
///
///     conv(x, w) = conv((x - l) / s, w * s) + sum over the window of w * l
///
/// What is rounded is `(x - l) / s`, which runs from 0 to 255. Of an image that was normalised channel by channel it
/// is the bytes the image was made of, and rounding it changes nothing. The border is put around x before, since the
/// bytes that zero is are not the same for all channels; it is what rounding changes now, so it must be a small part.
struct ChannelSteps {
  /// The steps of the channels.
  let scales: [Double]
  /// What a byte of 0 stands for.
  let lower: [Double]

  /// Nil where channels share a step, or the product cannot take others: it must be a convolution with a constant
  /// bias that alone reads an input of the network.
  init?(
    _ product: QuantizableProducts.Product, _ entry: CalibrationTable.Entry, _ graph: Graph
  ) {
    let node = graph[product.node]
    guard let conv = node.op as? Conv, conv.group == 1, conv.autoPad == .notset,
      !conv.isChannelsLast, graph.inputs.contains(product.input),
      graph[product.input].consumers.count == 1, !graph.isOutput(product.input),
      let weights = node.inputs[1].flatMap({ graph[$0].constant }), weights.rank > 2,
      !entry.channelRanges.isEmpty, entry.channelRanges.count == weights.shape[1],
      node.inputs.count < 3 || node.inputs[2] == nil || graph[node.inputs[2]!].constant != nil
    else { return nil }
    scales = entry.channelRanges.map(\.scale)
    lower = entry.channelRanges.map(\.lower)
    guard let outside = Self.shareOfBorder(conv, graph[product.input], weights),
      outside * largestErrorOfZero <= Self.mostBorder
    else { return nil }
  }

  /// What the border may do, as the product of its share and the square of its error in steps. Its errors are all
  /// alike and add up, while those of pixels in shared steps, 1/12 on average, cancel.
  private static let mostBorder = 1.0 / 96

  /// How far zero is from a whole step, squared.
  private var largestErrorOfZero: Double {
    zip(lower, scales).map { lower, scale in
      let zero = -lower / scale
      return (zero - zero.rounded()) * (zero - zero.rounded())
    }.max() ?? 0
  }

  /// The share of what weights multiply that lies outside of the input; nil when that depends on a size that is
  /// not known.
  private static func shareOfBorder(_ conv: Conv, _ x: Value, _ weights: Tensor) -> Double? {
    guard conv.pads.contains(where: { $0 != 0 }) else { return 0 }
    let axes = weights.rank - 2
    guard let dims = x.type.tensor?.dims, dims.count == axes + 2, conv.pads.count == 2 * axes else {
      return nil
    }
    var inside = 1.0
    for axis in 0..<axes {
      guard let size = dims[axis + 2].value else { return nil }
      let step = conv.strides.isEmpty ? 1 : conv.strides[axis]
      let dilation = conv.dilations.isEmpty ? 1 : conv.dilations[axis]
      let window = weights.shape[axis + 2]
      let padded = size + conv.pads[axis] + conv.pads[axes + axis]
      let starts = stride(from: 0, through: padded - dilation * (window - 1) - 1, by: step)
      let places = starts.flatMap { start in (0..<window).map { start + $0 * dilation - conv.pads[axis] } }
      guard !places.isEmpty else { return nil }
      inside *= Double(places.count { (0..<size).contains($0) }) / Double(places.count)
    }
    return 1 - inside
  }

  /// The rounded input, with the convolution's border around it.
  func quantize(_ product: QuantizableProducts.Product, _ graph: inout Graph) throws(ApusError)
    -> ValueID
  {
    let name = graph[product.input].name
    func constant(_ label: String, _ tensor: Tensor, _ graph: inout Graph) -> ValueID {
      graph.addConstant(graph.uniqueName("\(name).\(label)"), tensor)
    }
    let x = try padded(product, &graph)
    let shape = [1, scales.count] + Array(repeating: 1, count: (graph[x].type.tensor?.rank ?? 4) - 2)
    let factor = constant("steps", try Tensor(scales.map { 1 / $0 }, .float32, shape: shape), &graph)
    let shift = constant(
      "shift", try Tensor(zip(lower, scales).map { -$0 / $1 }, .float32, shape: shape), &graph)
    let scaled = try graph.add(Mul(), [x, factor], name: "\(name).scale")
    let shifted = try graph.add(Add(), [scaled[0], shift], name: "\(name).shift")
    let one = constant("scale", try Tensor([1.0], .float32, shape: []), &graph)
    let zero = constant("zero_point", try Tensor([Int64(0)], .uint8, shape: []), &graph)
    let q = try graph.add(
      QuantizeLinear(outputType: .uint8), [shifted[0], one, zero], name: "\(name).quantize")
    return try graph.add(DequantizeLinear(), [q[0], one, zero], name: "\(name).dequantize")[0]
  }

  private func padded(_ product: QuantizableProducts.Product, _ graph: inout Graph) throws(ApusError)
    -> ValueID
  {
    let node = graph[product.node]
    guard var conv = node.op as? Conv, conv.pads.contains(where: { $0 != 0 }) else {
      return product.input
    }
    let name = graph[product.input].name
    let half = conv.pads.count / 2
    let pads = [0, 0] + conv.pads[..<half] + [0, 0] + conv.pads[half...]
    let sizes = graph.addConstant(
      graph.uniqueName("\(name).pads"), try Tensor(pads.map { Int64($0) }, .int64, shape: [pads.count]))
    conv.pads = conv.pads.map { _ in 0 }
    graph.update(product.node, op: conv, inputs: node.inputs)
    return try graph.add(Pad(), [product.input, sizes], name: "\(name).pad")[0]
  }

  /// Weights that multiply the steps.
  func multiplied(_ weights: Tensor) throws(ApusError) -> Tensor {
    var values = weights.floats()
    for index in values.indices { values[index] *= Float(scales[channel(of: index, weights)]) }
    return try Tensor(values, shape: weights.shape)
  }

  /// Means of the channels in steps.
  func divided(_ means: [Double]) -> [Double] { zip(means, scales).map { $0 / $1 } }

  /// Adds what the smallest numbers of the channels come to with weights as they are rounded.
  func shiftBias(of id: NodeID, _ rounded: WeightQuantization.Result, _ graph: inout Graph)
    throws(ApusError)
  {
    let node = graph[id]
    let outputs = rounded.bytes.shape[0]
    let perOutput = rounded.bytes.count / max(1, outputs)
    let factors = rounded.scales.floats()
    var bias = node.inputs.count > 2 ? node.inputs[2].flatMap { graph[$0].constant?.doubles() } : nil
    bias = bias ?? Array(repeating: 0, count: outputs)
    for (index, byte) in rounded.bytes.ints().enumerated() {
      let channel = channel(of: index, rounded.bytes)
      bias?[index / perOutput] +=
        Double(byte) * Double(factors[index / perOutput]) * lower[channel] / scales[channel]
    }
    let value = graph.addConstant(
      graph.uniqueName("\(node.name).bias"), try Tensor(bias ?? [], .float32, shape: [outputs]))
    graph.update(id, op: node.op, inputs: Array(node.inputs.prefix(2)) + [value])
  }

  /// The operand channel of a weight.
  private func channel(of index: Int, _ weights: Tensor) -> Int {
    index / weights.shape.dropFirst(2).reduce(1, *) % scales.count
  }
}
