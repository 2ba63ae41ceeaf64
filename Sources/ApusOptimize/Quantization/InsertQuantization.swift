// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor
import Synchronization

/// Puts `QuantizeLinear` and `DequantizeLinear` around the left sides of products whose ranges are
/// known, and rounds their weights: the network then is as if it had come quantised.
///
/// A value is rounded once. Pointwise operators that read it beside a product (the addition around a
/// residual block) read the rounded form, so that it is stored as bytes only.
public struct InsertQuantization: Pass {
  public let name = "InsertQuantization"
  /// The ranges by the names of the tensors.
  public let table: CalibrationTable
  /// The products to round.
  public let layers: LayerChoice
  /// What to do about weights and biases.
  public let options: QuantizationOptions
  /// Weights that were rounded before.
  private let known: RoundedWeights

  /// Creates the pass.
  public init(
    _ table: CalibrationTable, choosing layers: LayerChoice = .all,
    _ options: QuantizationOptions = QuantizationOptions(), known: RoundedWeights = RoundedWeights()
  ) {
    self.known = known
    self.table = table
    self.layers = layers
    self.options = options
  }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    var rounded: [ValueID: ValueID] = [:]
    for product in try QuantizableProducts(graph).products {
      let node = graph[product.node]
      guard layers.contains(node) else {
        context.refuse(name, node.name, because: "another precision is chosen for it")
        continue
      }
      guard let entry = table.entries[graph[product.input].name], !entry.range.isEmpty else {
        context.refuse(
          name, node.name, because: "the range of '\(graph[product.input].name)' is not known")
        continue
      }
      guard context.claim(name, node.name) else { continue }
      let steps = ChannelSteps(product, entry, graph)
      let x: ValueID
      if let steps {
        x = try steps.quantize(product, &graph)
      } else {
        x = try quantized(product.input, entry.range, &rounded, &graph)
      }
      try round(product.node, x, entry, steps, &graph)
      count += 1
    }
    for value in rounded.keys.sorted() { dropLimit(of: value, &graph) }
    return count
  }

  /// The rounded form of a value, made once.
  private func quantized(
    _ value: ValueID, _ range: ActivationRange, _ rounded: inout [ValueID: ValueID],
    _ graph: inout Graph
  ) throws(ApusError) -> ValueID {
    if let known = rounded[value] { return known }
    let name = graph[value].name
    let readers = Set(graph[value].consumers)
    let scale = graph.addConstant(
      graph.uniqueName("\(name).scale"), try Tensor([range.scale], .float32, shape: []))
    let zero = graph.addConstant(
      graph.uniqueName("\(name).zero_point"), try Tensor([Int64(range.zeroPoint)], .uint8, shape: []))
    let q = try graph.add(
      QuantizeLinear(outputType: .uint8), [value, scale, zero], name: "\(name).quantize")
    let result = try graph.add(DequantizeLinear(), [q[0], scale, zero], name: "\(name).dequantize")
    rounded[value] = result[0]
    for reader in readers.sorted() where graph[reader].op is any PointwiseOperator {
      for index in graph[reader].inputs.indices where graph[reader].inputs[index] == value {
        graph.setInput(reader, index, to: result[0])
      }
    }
    return result[0]
  }

  /// Values that are rounded and nothing else need no upper limit where bytes end before it.
  private func dropLimit(of value: ValueID, _ graph: inout Graph) {
    guard let producer = graph[value].producer, graph[producer].op is Clip,
      let range = table.entries[graph[value].name]?.range, !graph.isOutput(value),
      graph[value].consumers.allSatisfy({ graph[$0].op is QuantizeLinear }),
      graph[producer].inputs.count > 2,
      let limits = graph[producer].inputs[2].flatMap({ graph[$0].constant }),
      limits.dataType == .float32, limits.floats().allSatisfy({ Double($0) >= range.upper })
    else { return }
    graph.update(producer, op: graph[producer].op, inputs: Array(graph[producer].inputs.prefix(2)))
  }

  /// Rounds the weights of a product and gives it the rounded left side.
  private func round(
    _ id: NodeID, _ x: ValueID, _ entry: CalibrationTable.Entry, _ steps: ChannelSteps?,
    _ graph: inout Graph
  ) throws(ApusError) {
    let node = graph[id]
    guard let weightsID = node.inputs[1], var weights = graph[weightsID].constant else { return }
    let axis = node.op is Conv ? 0 : 1
    if let steps { weights = try steps.multiplied(weights) }
    let result = try known.result(of: node.name) { () throws(ApusError) in
      try WeightQuantization.perChannel(
        weights, axis: axis, searchesClipping: options.searchesWeightClipping,
        rounding: rounding(of: node, weights, steps))
    }
    let bytes = graph.addConstant(graph.uniqueName("\(node.name).weights"), result.bytes)
    let scales = graph.addConstant(graph.uniqueName("\(node.name).scales"), result.scales)
    let back = try graph.add(
      DequantizeLinear(axis: axis), [bytes, scales], name: "\(node.name).dequantize_weights")
    graph.setInput(id, 0, to: x)
    graph.setInput(id, 1, to: back[0])
    if options.correctsBias {
      try BiasCorrection(weights, result, axis: axis).apply(
        to: id, means: steps?.divided(entry.channelMeans) ?? entry.channelMeans, &graph)
    }
    try steps?.shiftBias(of: id, result, &graph)
  }
}

extension InsertQuantization {
  /// How the weights of a product are rounded together: by what they were seen to multiply, or as windows
  /// over pixels usually are.
  private func rounding(of node: Node, _ weights: Tensor, _ steps: ChannelSteps?) -> RowRounding? {
    guard options.correctsRounding else { return nil }
    let columns = node.op is Conv ? weights.shape.dropFirst().reduce(1, *) : weights.shape[0]
    if let moments = table.moments[node.name], moments.blocks.rowCount == columns,
      let rounding = (steps.map { moments.divided(by: $0.scales) } ?? moments).rounding
    {
      return rounding
    }
    return (node.op as? Conv).flatMap { RowRounding(windowsOf: weights, dilations: $0.dilations) }
  }
}

/// Weights that were rounded, so that a search which builds a network many times rounds them once. One is
/// for one network, table and options.
public final class RoundedWeights: Sendable {
  private let results = Mutex<[String: WeightQuantization.Result]>([:])
  private let narrow = Mutex<[NarrowKey: Tensor]>([:])

  private struct NarrowKey: Hashable {
    let node: String
    let isScaled: Bool
  }

  /// None yet.
  public init() {}

  /// The weights of a node, rounded by `round` the first time.
  func result(
    of node: String, _ round: () throws(ApusError) -> WeightQuantization.Result
  ) throws(ApusError) -> WeightQuantization.Result {
    if let known = results.withLock({ $0[node] }) { return known }
    let result = try round()
    results.withLock { $0[node] = result }
    return result
  }

  /// The weights of a node in a narrower float type, rounded by `round` the first time; `isScaled` where channels that
  /// depthwise convolutions read are scaled, which changes the weights.
  func narrow(_ node: String, isScaled: Bool, _ round: () throws(ApusError) -> Tensor) throws(ApusError) -> Tensor {
    let key = NarrowKey(node: node, isScaled: isScaled)
    if let known = narrow.withLock({ $0[key] }) { return known }
    let result = try round()
    narrow.withLock { $0[key] = result }
    return result
  }
}

/// What is done to weights and biases when a network is quantised.
public struct QuantizationOptions: Sendable, Hashable {
  /// Whether each channel's weights take the scale with the smallest mean square error.
  public var searchesWeightClipping = false
  /// Whether channels that depthwise convolutions alone read are scaled so that small ones keep their
  /// detail, which costs nothing.
  public var scalesChannels = true
  /// Whether others are scaled, too, at the cost of the weights' detail. It gained nothing on the
  /// classifiers it was measured on.
  public var equalizesChannels = false
  /// Whether biases make up for what rounding the weights shifts the mean of the results by.
  public var correctsBias = true
  /// Whether weights are rounded together, so that their errors cancel in the results.
  public var correctsRounding = true

  /// The usual options.
  public init() {}
}
