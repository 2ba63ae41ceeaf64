// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Operators of the domain `com.microsoft` that exporters and graph optimisers leave in files. Each is
/// built from standard ones, so that it is optimised like them.
extension ONNXOperatorTable {
  /// Activations, normalisations and fused forms.
  mutating func addContrib() {
    let domain = "com.microsoft"
    on("FastGelu", since: 1, domain: domain) { (node) throws(ApusError) in
      let x = try node.biased(try node.operand(0), node.optional(1))
      return try node.result(Gelu(approximate: true), [x])
    }
    on("BiasGelu", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.result(Gelu(), [try node.biased(try node.operand(0), node.optional(1))])
    }
    op("QuickGelu", since: 1, domain: domain) { (node) throws(ApusError) in
      Swish(alpha: try node.attributes.float("alpha", 1.702))
    }
    on("SkipLayerNormalization", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.skipNormalization(bias: 4) { (epsilon) in LayerNormalization(axis: -1, epsilon: epsilon) }
    }
    on("SkipSimplifiedLayerNormalization", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.skipNormalization(bias: 3) { (epsilon) in RMSNormalization(axis: -1, epsilon: epsilon) }
    }
    // It appears in the standard domain, too.
    for place in ["", domain] {
      op("SimplifiedLayerNormalization", since: 1, domain: place) { (node) throws(ApusError) in
        node.attributes.ignore("stash_type")
        return RMSNormalization(
          axis: try node.attributes.int("axis", -1), epsilon: try node.attributes.float("epsilon", 1e-5))
      }
    }
    on("EmbedLayerNormalization", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.embedding()
    }
    on("FusedConv", since: 1, domain: domain) { (node) throws(ApusError) in
      var y = try node.emit(
        try node.convolution(), [try node.operand(0), try node.operand(1), node.optional(2)])
      y = try node.biased(y, node.optional(3))
      let parameters = try node.attributes.floats("activation_params", [])
      return try node.activated(y, try node.attributes.string("activation", ""), parameters)
    }
    on("FusedGemm", since: 1, domain: domain) { (node) throws(ApusError) in
      let sum = try node.gemm(isResult: false)
      var parameters: [Double] = []
      for name in ["activation_alpha", "activation_beta"] {
        if let value = try node.attributes.optionalFloat(name) { parameters.append(value) }
      }
      node.attributes.ignore("activation_gamma")
      return try node.activated(sum[0], try node.attributes.string("activation", ""), parameters)
    }
    on("RotaryEmbedding", since: 1, domain: domain) { (node) throws(ApusError) in
      guard try !node.attributes.flag("is_packed_batching", false),
        try node.attributes.float("scale", 1) == 1
      else { throw ApusError(.notYetSupported, "RotaryEmbedding with packed batches or a scale") }
      let heads = try node.attributes.int("num_heads", 0)
      let op = RotaryEmbedding(
        isInterleaved: try node.attributes.flag("interleaved", false),
        turned: try node.attributes.int("rotary_embedding_dim", 0), heads: heads == 0 ? nil : heads)
      return try node.result(
        op, [try node.operand(0), try node.operand(2), try node.operand(3), try node.rotaryPlaces()])
    }
    addContribAttention(domain)
    addContribWeights(domain)
    addContribLayouts(domain)
    addContribQuantization(domain)
  }

  /// Operators with channels last.
  private mutating func addContribLayouts(_ domain: String) {
    on("NhwcConv", since: 1, domain: domain) { (node) throws(ApusError) in
      let x = try node.channelsFirst(try node.operand(0))
      let w = try node.channelsFirst(try node.operand(1))
      return [try node.channelsLast(try node.emit(try node.convolution(weights: w), [x, w, node.optional(2)]))]
    }
    on("NhwcMaxPool", since: 1, domain: domain) { (node) throws(ApusError) in
      let x = try node.channelsFirst(try node.operand(0))
      return [try node.channelsLast(try node.emit(MaxPool(try node.pooling()), [x]))]
    }
    on("QLinearAveragePool", since: 1, domain: domain) { (node) throws(ApusError) in
      let isLast = try node.attributes.flag("channels_last", false)
      let x = isLast ? try node.channelsFirst(try node.real(0)) : try node.real(0)
      let op = AveragePool(
        try node.pooling(), countIncludePad: try node.attributes.flag("count_include_pad", false))
      let y = try node.emit(op, [x])
      return try node.quantized(isLast ? try node.channelsLast(y) : y, scale: 3)
    }
  }

  private mutating func addContribQuantization(_ domain: String) {
    op("QuantizeLinear", since: 1, domain: domain) { (node) throws(ApusError) in
      QuantizeLinear(axis: try node.attributes.int("axis", 1))
    }
    op("DequantizeLinear", since: 1, domain: domain) { (node) throws(ApusError) in
      DequantizeLinear(axis: try node.attributes.int("axis", 1))
    }
    let binary: [(String, any Operator)] = [("QLinearAdd", Add()), ("QLinearMul", Mul())]
    for (name, op) in binary {
      on(name, since: 1, domain: domain) { (node) throws(ApusError) in
        let (a, b) = (try node.real(0), try node.real(3))
        return try node.quantized(try node.emit(op, [a, b]), scale: 6)
      }
    }
    on("QLinearSigmoid", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.quantized(try node.emit(Sigmoid(), [try node.real(0)]), scale: 3)
    }
    on("QLinearLeakyRelu", since: 1, domain: domain) { (node) throws(ApusError) in
      let op = LeakyRelu(alpha: try node.attributes.float("alpha", 0.01))
      return try node.quantized(try node.emit(op, [try node.real(0)]), scale: 3)
    }
    on("QLinearGlobalAveragePool", since: 1, domain: domain) { (node) throws(ApusError) in
      let rank = try node.rank(0)
      let isLast = try node.attributes.flag("channels_last", false)
      let axes = isLast ? Array(1..<max(1, rank - 1)) : Array(2..<max(2, rank))
      let mean = try node.emit(
        Reduce(function: .mean, axes: axes, keepDims: true), [try node.real(0)])
      return try node.quantized(mean, scale: 3)
    }
    on("QLinearSoftmax", since: 1, domain: domain) { (node) throws(ApusError) in
      guard try node.attributes.int("opset", 13) >= 13 else {
        throw ApusError(.notYetSupported, "QLinearSoftmax of an operator set before 13")
      }
      let op = Softmax(axis: try node.attributes.int("axis", -1))
      return try node.quantized(try node.emit(op, [try node.real(0)]), scale: 3)
    }
    on("QLinearWhere", since: 1, domain: domain) { (node) throws(ApusError) in
      let choice = try node.emit(Where(), [try node.operand(0), try node.real(1), try node.real(4)])
      return try node.quantized(choice, scale: 7)
    }
    on("QLinearConcat", since: 1, domain: domain) { (node) throws(ApusError) in
      var parts: [ValueID] = []
      for index in stride(from: 2, to: node.inputs.count, by: 3) { parts.append(try node.real(index)) }
      let joined = try node.emit(Concat(axis: try node.attributes.int("axis")), parts)
      return try node.quantized(joined, scale: 0)
    }
    on("QGemm", since: 1, domain: domain) { (node) throws(ApusError) in try node.quantizedGemm() }
    on("MatMulIntegerToFloat", since: 1, domain: domain) { (node) throws(ApusError) in
      let a = try node.real(0, scale: 2, zeroPoint: 4)
      let b = try node.real(1, scale: 3, zeroPoint: 5)
      let product = try node.emit(MatMul(), [a, b])
      return try node.result(Identity(), [try node.biased(product, node.optional(6))])
    }
    on("DynamicQuantizeMatMul", since: 1, domain: domain) { (node) throws(ApusError) in
      let parts = try node.emit(DynamicQuantizeLinear(), [try node.operand(0)], outputCount: 3)
      let a = try node.emit(DequantizeLinear(axis: 0), parts)
      let product = try node.emit(MatMul(), [a, try node.real(1, scale: 2, zeroPoint: 3)])
      return try node.result(Identity(), [try node.biased(product, node.optional(4))])
    }
  }
}

extension NodeImport {
  /// A sum with an operand that may be omitted.
  fileprivate func biased(_ x: ValueID, _ bias: ValueID?) throws(ApusError) -> ValueID {
    try bias.map { (bias) throws(ApusError) in try emit(Add(), [x, bias]) } ?? x
  }

  /// A value with its last axis moved behind the first.
  fileprivate func channelsFirst(_ x: ValueID) throws(ApusError) -> ValueID {
    let rank = try rank(of: x)
    return try emit(Transpose(permutation: [0, rank - 1] + Array(1..<max(1, rank - 1))), [x])
  }

  /// A value with its second axis moved to the end.
  fileprivate func channelsLast(_ x: ValueID) throws(ApusError) -> ValueID {
    let rank = try rank(of: x)
    return try emit(Transpose(permutation: [0] + Array(2..<max(2, rank)) + [1]), [x])
  }

  /// The named activation of a fused operator.
  fileprivate func activated(_ x: ValueID, _ name: String, _ parameters: [Double]) throws(ApusError)
    -> [ValueID]
  {
    func parameter(_ index: Int, _ fallback: Double) -> Double {
      index < parameters.count ? parameters[index] : fallback
    }
    let type = try tensorType(0).dataType
    switch name {
    case "": return try result(Identity(), [x])
    case "Relu": return try result(Relu(), [x])
    case "Tanh": return try result(Tanh(), [x])
    case "Sigmoid": return try result(Sigmoid(), [x])
    case "LeakyRelu": return try result(LeakyRelu(alpha: parameter(0, 0.01)), [x])
    case "HardSigmoid":
      return try result(HardSigmoid(alpha: parameter(0, 0.2), beta: parameter(1, 0.5)), [x])
    case "Clip":
      return try result(
        Clip(), [x, try scalar(parameter(0, -3.4e38), type), try scalar(parameter(1, 3.4e38), type)])
    default: throw ApusError(.invalidAttribute, "'activation' is '\(name)', which is not known")
    }
  }

  /// `normalise(x + skip + bias)`; the sum is the fourth result.
  fileprivate func skipNormalization(bias: Int, _ make: (Double) -> any Operator) throws(ApusError)
    -> [ValueID]
  {
    let sum = try biased(
      try emit(Add(), [try operand(0), try operand(1)]), optional(bias))
    let op = make(try attributes.float("epsilon", 1e-5))
    let normal = try emit(op, [sum, try operand(2)] + (bias == 4 ? [optional(3)] : []))
    guard outputCount > 1 else { return [normal] }
    // Mean and deviation are only for training.
    return outputCount < 4 ? Array(repeating: normal, count: outputCount) : [normal, normal, normal, sum]
  }

  fileprivate func embedding() throws(ApusError) -> [ValueID] {
    let ids = try operand(0)
    var sum = try emit(Gather(axis: 0), [try operand(2), ids])
    let places: ValueID
    if let given = optional(8) {
      places = given
    } else {
      let length = try emit(Gather(axis: 0), [try emit(Shape(), [ids]), try scalar(1, .int64)])
      places = try emit(NumberRange(), [try scalar(0, .int64), length, try scalar(1, .int64)])
    }
    sum = try emit(Add(), [sum, try emit(Gather(axis: 0), [try operand(3), places])])
    if let segments = optional(1), let table = optional(4) {
      sum = try emit(Add(), [sum, try emit(Gather(axis: 0), [table, segments])])
    }
    attributes.ignore("mask_index_type")
    let op = LayerNormalization(axis: -1, epsilon: try attributes.float("epsilon", 1e-12))
    let normal = try emit(op, [sum, try operand(5), try operand(6)])
    // How many tokens of each row are not masked.
    let counted: ValueID
    if let mask = optional(7) {
      counted = try emit(
        Reduce(function: .sum, axes: [1], keepDims: false), [try emit(Cast(to: .int32), [mask])])
    } else {
      let rows = try emit(
        Slice(), [try emit(Shape(), [ids]), try vector([0]), try vector([1])])
      counted = try emit(ConstantOfShape(value: try Tensor([Int64(0)], .int32, shape: [1])), [rows])
    }
    return Array([normal, counted, sum].prefix(max(1, outputCount)))
  }

  /// The real numbers of a quantised operand; its scale and zero point follow it unless said otherwise.
  fileprivate func real(_ index: Int, scale: Int? = nil, zeroPoint: Int? = nil) throws(ApusError)
    -> ValueID
  {
    let scaleID = try operand(scale ?? index + 1)
    // A vector of scales belongs to the columns of weights.
    let rank = try tensorType(index).rank ?? 1
    return try emit(
      DequantizeLinear(axis: max(0, rank - 1)),
      [try operand(index), scaleID, optional(zeroPoint ?? index + 2)])
  }

  /// The node's result: the value in the steps of operand `scale`, its zero point being the next one.
  fileprivate func quantized(_ value: ValueID, scale: Int) throws(ApusError) -> [ValueID] {
    let type = inputs.indices.lazy.compactMap { index -> DataType? in
      guard let operand = self.optional(index), case .tensor(let type) = self.type(of: operand),
        type.dataType == .uint8 || type.dataType == .int8
      else { return nil }
      return type.dataType
    }.first
    return try result(
      QuantizeLinear(outputType: type ?? .uint8), [value, try operand(scale), optional(scale + 1)])
  }

  fileprivate func quantizedGemm() throws(ApusError) -> [ValueID] {
    let alpha = try attributes.float("alpha", 1)
    var a = try real(0)
    // Scales of weights that will be transposed belong to their rows.
    let isTurned = try attributes.flag("transB", false)
    var b = try emit(
      DequantizeLinear(axis: isTurned ? 0 : 1), [try operand(3), try operand(4), optional(5)])
    if try attributes.flag("transA", false) { a = try emit(Transpose(permutation: [1, 0]), [a]) }
    if isTurned { b = try emit(Transpose(permutation: [1, 0]), [b]) }
    var product = try emit(MatMul(), [a, b])
    if let c = optional(6) {
      let scale = try emit(Mul(), [try operand(1), try operand(4)])
      product = try emit(
        Add(), [product, try emit(Mul(), [try emit(Cast(to: .float32), [c]), scale])])
    }
    if alpha != 1 { product = try emit(Mul(), [product, try scalar(alpha, .float32)]) }
    guard optional(7) != nil else { return try result(Identity(), [product]) }
    return try quantized(product, scale: 7)
  }
}
