// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Finds which channels of a network's tensors can be scaled together, so that no result changes, and
/// how (cross-layer equalisation: M. Nagel et al., "Data-free quantization through weight equalization
/// and bias correction", 2019; balanced between values and weights as in G. Xiao et al., "SmoothQuant",
/// 2023).
///
/// A channel of a convolution's result may be made smaller if everything that reads it makes up for it:
/// other convolutions in their weights, rectifiers, pooling, concatenation and additions by passing it
/// on. Channels that anything else reads or makes are left alone.
///
/// Where depthwise convolutions alone read a channel, it costs nothing: the weights of each of their
/// channels have a scale of their own. Such channels are made as large as the largest of their tensor.
/// Others trade the detail of values for that of weights, which is done only where it is asked for.
public struct ChannelGroups {
  private let graph: Graph
  private var starts: [ValueID: Int] = [:]
  private var parents: [Int] = []
  private var isFixed: [Bool] = []
  /// Whether a depthwise convolution reads the channel.
  private var isReadAlone: [Bool] = []
  /// The largest weight that multiplies a channel in a product that may be rounded.
  private var weights: [Int: Double] = [:]

  /// Analyses a simplified network.
  public init(_ graph: Graph) throws(ApusError) {
    self.graph = graph
    let order = try graph.topologicalOrder()
    for value in graph.inputs + graph.outputs { fix(value) }
    for id in order { visit(graph[id]) }
  }

  /// Bits that a channel may gain. Its rounding is next to nothing beside that of large channels then, and a
  /// channel that hardly moved in what was seen may be larger in what was not.
  private static let mostBits = 3

  /// Whether there is any channel to scale.
  public func canScale(balancing: Bool) -> Bool {
    parents.indices.contains { element in
      let root = root(element)
      guard !isFixed[root] else { return false }
      return weights[root] == nil ? isReadAlone[root] : balancing
    }
  }

  /// The scaling for the largest magnitudes of the channels of tensors that products read.
  ///
  /// - Parameter balancing: Whether values are balanced against weights that share a scale, too.
  public func scaling(for largest: [String: [Double]], balancing: Bool) -> ChannelScaling {
    var wanted: [Int: Double] = [:]
    var tops: [Int: Double] = [:]
    for (value, start) in starts {
      guard let channels = largest[graph[value].name] else { continue }
      // Channels that are hardly ever anything must not be blown up.
      let floor = (channels.max() ?? 0) / 1024
      for (index, magnitude) in channels.enumerated() where start + index < parents.count {
        let root = root(start + index)
        wanted[root] = max(wanted[root] ?? 0, magnitude, floor)
        tops[root] = max(tops[root] ?? 0, floor * 1024)
      }
    }
    func steps(_ element: Int) -> Int {
      let root = root(element)
      guard !isFixed[root], let magnitude = wanted[root], magnitude > 0 else { return 0 }
      guard let weight = weights[root] else {
        guard isReadAlone[root], let top = tops[root] else { return 0 }
        return -min(ChannelScaling.perOctave * Self.mostBits, ChannelScaling.steps(in: top / magnitude))
      }
      guard balancing, weight > 0 else { return 0 }
      // The square root of the ratio balances both.
      let most = 24 * ChannelScaling.perOctave
      return min(most, max(-most, ChannelScaling.steps(in: (magnitude / weight).squareRoot())))
    }
    var result = ChannelScaling()
    for id in graph.nodes {
      let node = graph[id]
      if Self.isProduct(node, graph) || Self.shift(node, graph) != nil
        || Self.limits(node, graph) != nil,
        let steps = scales(of: node.outputs[0], steps)
      {
        result.outputs[node.name] = steps
      }
      if Self.isProduct(node, graph), let x = node.inputs[0], let steps = scales(of: x, steps) {
        result.inputs[node.name] = steps
      }
    }
    return result
  }

  /// The steps of a tensor's channels; nil when all are zero.
  private func scales(of value: ValueID, _ steps: (Int) -> Int) -> [Int]? {
    guard let start = starts[value], let count = channelCount(value) else { return nil }
    let result = (start..<start + count).map(steps)
    return result.contains { $0 != 0 } ? result : nil
  }

  // MARK: Sets of channels

  private func root(_ element: Int) -> Int {
    var element = element
    while parents[element] != element { element = parents[element] }
    return element
  }

  private mutating func join(_ a: Int, _ b: Int) {
    let (a, b) = (root(a), root(b))
    guard a != b else { return }
    parents[b] = a
    isFixed[a] = isFixed[a] || isFixed[b]
    isReadAlone[a] = isReadAlone[a] || isReadAlone[b]
    if let weight = weights.removeValue(forKey: b) { weights[a] = max(weights[a] ?? 0, weight) }
  }

  /// The axis of the channels.
  private func axis(_ rank: Int) -> Int { rank == 3 ? 2 : 1 }

  private func channelCount(_ value: ValueID) -> Int? {
    guard let type = graph[value].type.tensor, let dims = type.dims, type.dataType == .float32,
      dims.count >= 2
    else { return nil }
    return dims[axis(dims.count)].value
  }

  /// The first element of a tensor's channels; nil for what has none.
  private mutating func start(_ value: ValueID) -> Int? {
    if let known = starts[value] { return known }
    guard graph[value].constant == nil, let count = channelCount(value) else { return nil }
    let start = parents.count
    starts[value] = start
    parents += start..<start + count
    isFixed += Array(repeating: false, count: count)
    isReadAlone += Array(repeating: false, count: count)
    return start
  }

  private mutating func fix(_ value: ValueID) {
    guard let start = start(value), let count = channelCount(value) else { return }
    for element in start..<start + count { isFixed[root(element)] = true }
  }

  private mutating func join(_ a: ValueID, _ b: ValueID, count: Int, from: Int = 0) {
    guard let first = start(a), let second = start(b) else {
      fix(a)
      fix(b)
      return
    }
    for index in 0..<count { join(first + from + index, second + index) }
  }

  // MARK: Operators

  private mutating func visit(_ node: Node) {
    switch node.op {
    case is Conv where Self.isProduct(node, graph), is MatMul where Self.isProduct(node, graph):
      readByProduct(node)
    case is Relu, is LeakyRelu, is Identity, is MaxPool, is AveragePool: passOn(node)
    case is Clip where Self.limits(node, graph) != nil: passOn(node)
    case let reduce as Reduce where isSpatialMean(node, reduce): passOn(node)
    case is Reshape, is Flatten: reshape(node)
    case let concat as Concat: self.concat(node, concat)
    case is Add: add(node)
    default: fixAll(node)
    }
  }

  private mutating func fixAll(_ node: Node) {
    for value in node.inputs.compactMap({ $0 }) + node.outputs { fix(value) }
  }

  /// A product with constant weights in single precision, whose channels can be scaled.
  static func isProduct(_ node: Node, _ graph: Graph) -> Bool {
    guard node.inputs.count >= 2, let x = node.inputs[0], graph[x].constant == nil,
      let weights = node.inputs[1].flatMap({ graph[$0].constant }), weights.dataType == .float32
    else { return false }
    if let conv = node.op as? Conv {
      let bias = node.inputs.count > 2 ? node.inputs[2] : nil
      return weights.rank == 4 && conv.sumType == nil && !conv.isChannelsLast
        && (bias == nil || graph[bias!].constant != nil)
    }
    guard let product = node.op as? MatMul else { return false }
    return product.sumType == nil && weights.rank == 2
  }

  private mutating func readByProduct(_ node: Node) {
    guard let x = node.inputs[0], let weights = node.inputs[1].flatMap({ graph[$0].constant }),
      let first = start(x), start(node.outputs[0]) != nil, let channels = channelCount(x)
    else { return fixAll(node) }
    let largest = Self.largestByInput(node, weights)
    guard largest.count == channels else { return fixAll(node) }
    // Grouped convolutions without kernels on bytes keep their weights in floats.
    guard IntegerProduct.form(of: node, graph) != nil else { return }
    let isDepthwise = weights.rank > 2 && weights.shape[1] == 1 && weights.shape[0] == channels
    for (index, weight) in largest.enumerated() {
      let root = root(first + index)
      if isDepthwise {
        isReadAlone[root] = true
        continue
      }
      self.weights[root] = max(self.weights[root] ?? 0, weight)
    }
  }

  /// The largest weight of each operand channel.
  static func largestByInput(_ node: Node, _ weights: Tensor) -> [Double] {
    let place = ChannelOfWeight(node, weights)
    var largest = [Double](repeating: 0, count: place.inputs)
    for (index, value) in weights.floats().enumerated() {
      let channel = place.input(of: index)
      largest[channel] = max(largest[channel], Double(abs(value)))
    }
    return largest
  }

  private mutating func passOn(_ node: Node) {
    guard let x = node.inputs[0], node.outputs.count == 1 || graph.useCount(node.outputs[1]) == 0,
      let count = channelCount(x), count == channelCount(node.outputs[0])
    else { return fixAll(node) }
    join(x, node.outputs[0], count: count)
  }

  private func isSpatialMean(_ node: Node, _ reduce: Reduce) -> Bool {
    guard reduce.function == .mean, let axes = reduce.axes,
      graph[node.outputs[0]].type.tensor?.rank != 3,
      node.inputs[0].flatMap({ graph[$0].type.tensor?.rank }) == 4
    else { return false }
    return Set(axes.map { $0 < 0 ? $0 + 4 : $0 }) == [2, 3]
  }

  /// `[N, C, 1, 1]` to `[N, C]`.
  private mutating func reshape(_ node: Node) {
    guard let x = node.inputs[0], let from = graph[x].type.tensor?.dims, from.count == 4,
      from[2].value == 1, from[3].value == 1, let to = graph[node.outputs[0]].type.tensor?.dims,
      to.count == 2, let count = from[1].value, to[1].value == count
    else { return fixAll(node) }
    join(x, node.outputs[0], count: count)
  }

  private mutating func concat(_ node: Node, _ concat: Concat) {
    let rank = graph[node.outputs[0]].type.tensor?.rank ?? 0
    let counts = node.inputs.map { $0.flatMap { channelCount($0) } }
    guard rank == 4, concat.axis == 1 || concat.axis == -3, !counts.contains(nil) else {
      return fixAll(node)
    }
    var position = 0
    for (input, count) in zip(node.inputs, counts) {
      guard let input, let count else { continue }
      join(node.outputs[0], input, count: count, from: position)
      position += count
    }
  }

  /// The limits of a node that keeps values within constants.
  static func limits(_ node: Node, _ graph: Graph) -> (low: Double?, high: Double?)? {
    guard node.op is Clip, graph[node.outputs[0]].type.tensor?.rank ?? 0 >= 2 else { return nil }
    func limit(_ index: Int) -> (isKnown: Bool, value: Double?) {
      guard node.inputs.count > index, let value = node.inputs[index] else { return (true, nil) }
      guard let constant = graph[value].constant, constant.count == 1, constant.dataType == .float32
      else { return (false, nil) }
      return (true, constant.doubles()[0])
    }
    let (low, high) = (limit(1), limit(2))
    return low.isKnown && high.isKnown ? (low.value, high.value) : nil
  }

  /// The operand of an addition that is a constant for each channel.
  static func shift(_ node: Node, _ graph: Graph) -> Int? {
    guard node.op is Add, let dims = graph[node.outputs[0]].type.tensor?.dims, dims.count == 4 || dims.count == 2,
      let count = dims[1].value
    else { return nil }
    return node.inputs.indices.first { index in
      guard let constant = node.inputs[index].flatMap({ graph[$0].constant }),
        constant.dataType == .float32, constant.count == count, count > 1
      else { return false }
      let behind = dims.count - 2
      return constant.rank > behind && constant.shape[constant.rank - 1 - behind] == count
    }
  }

  private mutating func add(_ node: Node) {
    if let shift = Self.shift(node, graph), let x = node.inputs[1 - shift], graph[x].constant == nil,
      let count = channelCount(x), graph[x].type == graph[node.outputs[0]].type
    {
      return join(x, node.outputs[0], count: count)
    }
    guard let a = node.inputs[0], let b = node.inputs[1],
      let shape = graph[a].type.tensor, shape == graph[b].type.tensor,
      shape == graph[node.outputs[0]].type.tensor, graph[a].constant == nil,
      graph[b].constant == nil, let count = channelCount(a)
    else { return fixAll(node) }
    join(node.outputs[0], a, count: count)
    join(node.outputs[0], b, count: count)
  }
}

/// Which channels a weight connects.
struct ChannelOfWeight {
  let isConv: Bool
  /// Operand channels and result channels.
  let inputs: Int
  let outputs: Int
  private let perGroup: Int
  private let outputsPerGroup: Int
  private let window: Int

  init(_ node: Node, _ weights: Tensor) {
    isConv = node.op is Conv
    let group = (node.op as? Conv)?.group ?? 1
    window = isConv ? weights.shape.dropFirst(2).reduce(1, *) : 1
    perGroup = weights.shape[isConv ? 1 : 0]
    inputs = perGroup * group
    outputs = weights.shape[isConv ? 0 : 1]
    outputsPerGroup = max(1, outputs / max(1, group))
  }

  /// The operand channel of the weight at a position.
  func input(of index: Int) -> Int {
    guard isConv else { return index / outputs }
    let place = index / window
    return place / perGroup / outputsPerGroup * perGroup + place % perGroup
  }

  /// The result channel.
  func output(of index: Int) -> Int { isConv ? index / window / perGroup : index % outputs }
}
