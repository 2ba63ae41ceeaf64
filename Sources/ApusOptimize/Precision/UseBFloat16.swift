// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Convolutions, matrix products and attention multiply numbers of type `bfloat16` and add the products in
/// single precision; what stands between them stays in single precision.
///
/// An image's one or three channels, which the instructions cannot pair, get one of zeros (`PlanesToPixels`);
/// other products of an odd depth keep single precision.
public struct UseBFloat16: Pass {
  public let name = "UseBFloat16"

  /// The products to round.
  public let layers: LayerChoice

  /// What weights were seen to multiply, and weights that were rounded by it before; nil without calibration.
  private let measured: (table: CalibrationTable, known: RoundedWeights)?
  /// Whether channels are scaled as they were when they were measured.
  private let isScaled: Bool

  /// Creates the pass.
  ///
  /// - Parameters:
  ///   - layers: The products to round.
  ///   - table: What weights were seen to multiply.
  ///   - isScaled: Whether `EqualizeChannels` ran with this table.
  ///   - known: Weights that were rounded before, for one network and table.
  public init(
    choosing layers: LayerChoice = .all, _ table: CalibrationTable? = nil, isScaled: Bool = false,
    known: RoundedWeights = RoundedWeights()
  ) {
    self.layers = layers
    self.isScaled = isScaled
    measured = table.map { ($0, known) }
  }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    var rounded: [ValueID: ValueID] = [:]
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try narrow(id, &graph, &rounded, context) { count += 1 }
    }
    return count
  }

  /// `rounded` has what each value was rounded to already: all its readers share one.
  private func narrow(
    _ id: NodeID, _ graph: inout Graph, _ rounded: inout [ValueID: ValueID], _ context: PassContext
  ) throws(ApusError) -> Bool {
    let node = graph[id]
    if layers.contains(node), let channels = Self.imageChannels(node, graph) {
      return try narrowImage(id, channels, &graph, context)
    }
    if layers.contains(node), let attention = Self.narrowAttention(node, graph) {
      return try narrowAttention(id, attention, &graph, &rounded, context)
    }
    guard layers.contains(node), let op = Self.narrowForm(node, graph), let x = node.inputs[0],
      let right = node.inputs[1],
      let rank = graph[node.outputs[0]].type.tensor?.rank,
      context.claim(name, node.name)
    else { return false }
    let isComputed = graph[right].constant == nil
    var patch = GraphPatch(rule: name, replacing: [id])
    func cast(_ value: ValueID) -> GraphPatch.Reference {
      rounded[value].map { .existing($0) } ?? patch.add(Cast(to: .bfloat16), [.existing(value)])
    }
    let left = cast(x)
    let factor =
      try graph[right].constant.map { weights throws(ApusError) in
        patch.constant("\(node.name).weights", try self.rounded(weights, node))
      } ?? (right == x ? left : cast(right))
    let product = patch.add(op, [left, factor])
    patch.replace(node.outputs[0], with: try biased(product, node, rank: rank, &patch))
    try patch.apply(to: &graph)
    remember(isComputed ? [x, right] : [x], graph, &rounded)
    return true
  }

  /// The weights of a product, rounded so that their errors cancel where it is known how.
  private func rounded(_ weights: Tensor, _ node: Node) throws(ApusError) -> Tensor {
    if let conv = node.op as? Conv, conv.group > 1, weights.rank > 2, weights.shape[1] == 1 {
      return try FloatRounding.depthwise(weights, dilations: conv.dilations)
    }
    guard let (table, known) = measured, let moments = table.moments[node.name], node.op is Conv || node.op is MatMul,
      isScaled || table.scaling.inputs[node.name] == nil
    else {
      return try FloatRounding.bfloat16(
        weights, axis: 0, (node.op as? Conv).flatMap { RowRounding(windowsOf: weights, dilations: $0.dilations) })
    }
    return try known.narrow(node.name, isScaled: isScaled) { () throws(ApusError) in
      try FloatRounding.bfloat16(weights, axis: node.op is Conv ? 0 : 1, moments.rounding)
    }
  }

  /// Notes what values were rounded to.
  private func remember(_ values: [ValueID], _ graph: Graph, _ rounded: inout [ValueID: ValueID]) {
    for value in values where rounded[value] == nil {
      rounded[value] = graph[value].consumers.last { isRounding(graph[$0]) }.map {
        graph[$0].outputs[0]
      }
    }
  }

  private func narrowAttention(
    _ id: NodeID, _ op: Attention, _ graph: inout Graph, _ rounded: inout [ValueID: ValueID],
    _ context: PassContext
  ) throws(ApusError) -> Bool {
    let node = graph[id]
    guard context.claim(name, node.name) else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    var casts: [ValueID: GraphPatch.Reference] = rounded.mapValues { .existing($0) }
    let inputs = node.inputs.enumerated().map { index, input -> GraphPatch.Reference? in
      guard let input, index < 3 else { return input.map { .existing($0) } }
      let cast = casts[input] ?? patch.add(Cast(to: .bfloat16), [.existing(input)])
      casts[input] = cast
      return cast
    }
    patch.replace(node.outputs[0], with: patch.add(op, inputs))
    try patch.apply(to: &graph)
    remember(node.inputs.prefix(3).compactMap { $0 }, graph, &rounded)
    return true
  }

  /// Adds the node's bias, if it has one, along the channels of `[N, C, ...]`.
  private func biased(
    _ product: GraphPatch.Reference, _ node: Node, rank: Int, _ patch: inout GraphPatch
  ) throws(ApusError) -> GraphPatch.Reference {
    guard node.inputs.count > 2, let bias = node.inputs[2] else { return product }
    let axes = try Tensor([-1] + Array(repeating: 1, count: rank - 2), .int64, shape: [rank - 1])
    let vector = patch.add(Reshape(), [.existing(bias), patch.constant("\(node.name).axes", axes)])
    return patch.add(Add(), [product, vector])
  }

  /// Whether there is a kernel on `bfloat16` for a node.
  public static func takes(_ node: Node, _ graph: Graph) -> Bool {
    narrowForm(node, graph) != nil || imageChannels(node, graph) != nil
      || narrowAttention(node, graph) != nil
  }

  /// The channels that a convolution of an image's gets; nil for any other node.
  private static func imageChannels(_ node: Node, _ graph: Graph) -> Int? {
    guard let conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast, conv.group == 1,
      node.inputs.count >= 2, let x = node.inputs[0].flatMap({ graph[$0].type.tensor }),
      x.dataType == .float32, let dims = x.dims, dims.count == 4, let channels = dims[1].value,
      channels == 1 || channels == 3,
      let weights = node.inputs[1].flatMap({ graph[$0].constant }), weights.dataType == .float32,
      weights.rank == 4, weights.count > 0
    else { return nil }
    return channels + 1
  }

  private func narrowImage(
    _ id: NodeID, _ channels: Int, _ graph: inout Graph, _ context: PassContext
  ) throws(ApusError) -> Bool {
    let node = graph[id]
    guard var conv = node.op as? Conv, let x = node.inputs[0],
      let weights = node.inputs[1].flatMap({ graph[$0].constant }), context.claim(name, node.name)
    else { return false }
    conv.isChannelsLast = true
    conv.sumType = .float32
    var patch = GraphPatch(rule: name, replacing: [id])
    let pixels = patch.add(PlanesToPixels(channels: channels, to: .bfloat16), [.existing(x)])
    let filled = patch.constant(
      "\(node.name).weights", try Self.channelsLast(weights, channels: channels))
    let product = patch.add(
      Transpose(permutation: [0, 3, 1, 2]), [patch.add(conv, [pixels, filled])])
    patch.replace(node.outputs[0], with: try biased(product, node, rank: 4, &patch))
    try patch.apply(to: &graph)
    return true
  }

  /// Weights `[O, I, H, W]` as `[H, W, channels, O]`, those of more channels than there are being zeros.
  private static func channelsLast(_ weights: Tensor, channels: Int) throws(ApusError) -> Tensor {
    let (outputs, inputs) = (weights.shape[0], weights.shape[1])
    let places = weights.shape[2] * weights.shape[3]
    let source = weights.doubles()
    var values = [Double](repeating: 0, count: places * channels * outputs)
    for output in 0..<outputs {
      for input in 0..<inputs {
        for place in 0..<places {
          values[(place * channels + input) * outputs + output] =
            source[(output * inputs + input) * places + place]
        }
      }
    }
    return try Tensor(
      values, .bfloat16, shape: [weights.shape[2], weights.shape[3], channels, outputs])
  }

  /// Attention on narrow operands; nil where there is no kernel for it. Keys must end with a word.
  private static func narrowAttention(_ node: Node, _ graph: Graph) -> Attention? {
    guard var op = node.op as? Attention, op.sumType == nil, op.softCap == 0, op.leftWindow < 0,
      op.rightWindow < 0, node.outputs.count == 1, node.inputs.count >= 3,
      node.inputs.dropFirst(4).allSatisfy({ $0 == nil }),
      node.inputs.prefix(3).allSatisfy({
        $0.flatMap { graph[$0].type.tensor?.dataType } == .float32
      }), let dims = node.inputs[1].flatMap({ graph[$0].type.tensor?.dims }),
      let width = dims.last?.value
    else { return nil }
    guard dims.count == 4 ? width % 2 == 0 : width % (2 * max(1, op.keyHeads ?? 1)) == 0 else {
      return nil
    }
    op.sumType = .float32
    return op
  }

  private func isRounding(_ node: Node) -> Bool { (node.op as? Cast)?.to == .bfloat16 }

  /// The operator on narrow operands; nil where there is no kernel for it.
  private static func narrowForm(_ node: Node, _ graph: Graph) -> (any Operator)? {
    guard node.inputs.count >= 2, let x = node.inputs[0].flatMap({ graph[$0].type.tensor }) else {
      return nil
    }
    if let product = node.op as? MatMul, product.sumType == nil, product.isPlain,
      let y = node.inputs[1], graph[y].constant == nil, let right = graph[y].type.tensor,
      x.dataType == .float32, right.dataType == .float32, (x.rank ?? 0) >= 2, (right.rank ?? 0) >= 2
    {
      return MatMul(sumType: .float32)
    }
    guard let weights = node.inputs[1].flatMap({ graph[$0].constant }),
      x.dataType == .float32, weights.dataType == .float32, weights.count > 0
    else { return nil }
    if var conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast {
      guard let dims = x.dims, dims.count <= 4, let channels = dims[1].value else { return nil }
      let isDepthwise = conv.group == channels && weights.shape[0] == channels && channels > 1
      guard isDepthwise || channels / max(1, conv.group) % 2 == 0 else { return nil }
      conv.sumType = .float32
      return conv
    }
    if var conv = node.op as? ConvTranspose, conv.sumType == nil {
      guard weights.shape[0] / max(1, conv.group) % 2 == 0,
        SplitTransposedConvolutions.phased(conv, weights, spatial: []) != nil
      else { return nil }
      conv.sumType = .float32
      return conv
    }
    if let product = node.op as? MatMul, product.sumType == nil, weights.rank == 2,
      weights.shape[0] % 2 == 0
    {
      return MatMul(sumType: .float32)
    }
    return nil
  }
}
