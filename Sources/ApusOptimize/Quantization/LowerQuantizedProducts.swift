// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// A product of dequantised unsigned bytes with dequantised constant signed bytes is computed in integers:
///
///     conv((x - z) * s, w * t) = (conv(x, w) - z * sum(w)) * (s * t)
///
/// with the zero point around the input. Sums of bytes are exact, so only one rounding remains.
public struct LowerQuantizedProducts: Pass {
  public let name = "LowerQuantizedProducts"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try lower(id, &graph, context) { count += 1 }
    }
    return count
  }

  /// Constant signed bytes with a scale for each channel of the result.
  private struct Weights {
    var tensor: Tensor
    var scales: [Double]
    /// The sum of the weights of each channel.
    var sums: [Int]
  }

  private func lower(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    guard let product = IntegerProduct.form(of: node, graph), node.inputs.count >= 2,
      let xID = node.inputs[0], let source = graph[xID].producer,
      graph[source].op is DequantizeLinear, let x = graph[source].inputs[0],
      let parameters = QuantizationParameters(graph[source], graph), parameters.type == .uint8,
      let result = graph[node.outputs[0]].type.tensor, result.dataType == .float32,
      let rank = result.rank
    else { return false }
    let isConv = node.op is Conv
    guard let weights = try weights(node.inputs[1], isConv: isConv, graph) else {
      context.refuse(name, node.name, because: "the weights are not constant symmetric signed bytes")
      return false
    }
    var bias: Tensor?
    if node.inputs.count > 2, let biasID = node.inputs[2] {
      guard let known = try constant(biasID, graph) else {
        context.refuse(name, node.name, because: "the bias is not a constant")
        return false
      }
      bias = known
    }
    guard context.claim(name, node.name) else { return false }
    // Vectors along the channels: axis 1 of a convolution's result, the last one of a matrix.
    let shape = [weights.scales.count] + Array(repeating: 1, count: isConv ? rank - 2 : 0)
    var patch = GraphPatch(rule: name, replacing: [id])
    let sum = patch.add(
      product(parameters.zeroPoint),
      [.existing(x), patch.constant("\(node.name).weights", weights.tensor)])
    var operands: [GraphPatch.Reference] = [sum]
    func vector(_ label: String, _ tensor: Tensor) -> ScalarExpr {
      operands.append(patch.constant("\(node.name).\(label)", tensor))
      return .input(operands.count - 1)
    }
    var centred = ScalarExpr.input(0)
    if parameters.zeroPoint != 0 {
      let shift = weights.sums.map { Int64(-parameters.zeroPoint * $0) }
      centred = centred + vector("shift", try Tensor(shift, .int32, shape: shape))
    }
    let factors = weights.scales.map { $0 * parameters.scale }
    var y = ScalarExpr.cast(centred, .float32)
    if Set(factors).count == 1, let factor = factors.first {
      y = y * .const(Double(Float(factor)))
    } else {
      y = y * vector("scale", try Tensor(factors, .float32, shape: shape))
    }
    if let bias { y = y + vector("bias", try Tensor(bias.doubles(), .float32, shape: shape)) }
    patch.replace(
      node.outputs[0], with: patch.add(Pointwise(expression: y, resultType: .float32), operands))
    try patch.apply(to: &graph)
    return true
  }

  private func weights(_ value: ValueID?, isConv: Bool, _ graph: Graph) throws(ApusError) -> Weights? {
    guard let value, let producer = graph[value].producer else { return nil }
    // A transposed matrix, as `Gemm` has it.
    if !isConv, let transpose = graph[producer].op as? Transpose, transpose.permutation == [1, 0] {
      guard let inner = try quantized(graph[producer].inputs[0], axis: 0, graph),
        case .tensor(let turned)? = try transpose.evaluate([.tensor(inner.tensor)]).first
      else { return nil }
      return summed(turned, inner.scales, channelAxis: 1)
    }
    guard let found = try quantized(value, axis: isConv ? 0 : 1, graph),
      isConv || found.tensor.rank == 2
    else { return nil }
    return summed(found.tensor, found.scales, channelAxis: isConv ? 0 : 1)
  }

  /// Constant signed bytes behind a `DequantizeLinear` along `axis` with zero points of zero.
  private func quantized(_ value: ValueID?, axis: Int, _ graph: Graph) throws(ApusError) -> (
    tensor: Tensor, scales: [Double]
  )? {
    guard let value, let producer = graph[value].producer,
      let op = graph[producer].op as? DequantizeLinear, op.blockSize == 0
    else { return nil }
    let inputs = graph[producer].inputs
    guard inputs.count >= 2, let tensor = inputs[0].flatMap({ graph[$0].constant }),
      tensor.dataType == .int8, tensor.rank >= 2,
      let scale = inputs[1].flatMap({ graph[$0].constant }), scale.dataType == .float32
    else { return nil }
    if inputs.count > 2, let zeroID = inputs[2] {
      guard let zero = graph[zeroID].constant, zero.ints().allSatisfy({ $0 == 0 }) else { return nil }
    }
    let channels = tensor.shape[axis]
    if scale.count == 1 {
      return (tensor, Array(repeating: scale.doubles()[0], count: channels))
    }
    let scaledAxis = op.axis < 0 ? op.axis + tensor.rank : op.axis
    guard scaledAxis == axis, scale.count == channels else { return nil }
    return (tensor, scale.doubles())
  }

  private func summed(_ tensor: Tensor, _ scales: [Double], channelAxis: Int) -> Weights {
    var sums = [Int](repeating: 0, count: scales.count)
    let values = tensor.ints()
    let inner = tensor.shape[(channelAxis + 1)...].reduce(1, *)
    for index in values.indices { sums[index / inner % scales.count] += values[index] }
    return Weights(tensor: tensor, scales: scales, sums: sums)
  }

  /// A constant, or what a few operators make of constants (a bias in steps of both scales).
  private func constant(_ value: ValueID, _ graph: Graph, depth: Int = 4) throws(ApusError)
    -> Tensor?
  {
    if let known = graph[value].constant { return known }
    guard depth > 0, let producer = graph[value].producer,
      !(graph[producer].op is any NondeterministicOperator), graph[producer].outputs.count == 1
    else { return nil }
    var operands: [RuntimeValue?] = []
    for input in graph[producer].inputs {
      guard let input else {
        operands.append(nil)
        continue
      }
      guard let tensor = try constant(input, graph, depth: depth - 1) else { return nil }
      operands.append(.tensor(tensor))
    }
    guard !operands.isEmpty else { return nil }
    return try graph[producer].op.evaluate(operands).first?.tensor
  }
}
