// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Attention and what stands around it in language models.
  mutating func addAttention() {
    on("Attention", since: 23) { (node) throws(ApusError) in
      node.attributes.ignore("softmax_precision")
      let op = Attention(
        isCausal: try node.attributes.flag("is_causal", false),
        queryHeads: try node.attributes.optionalInt("q_num_heads"),
        keyHeads: try node.attributes.optionalInt("kv_num_heads"),
        scale: try node.attributes.optionalFloat("scale"),
        softCap: try node.attributes.float("softcap", 0),
        scoreMode: try node.attributes.int("qk_matmul_output_mode", 0),
        leftWindow: try node.attributes.int("left_window_size", -1),
        rightWindow: try node.attributes.int("right_window_size", -1))
      var inputs = node.inputs
      if let mask = node.optional(3) { inputs[3] = try node.addedMask(mask) }
      return try node.result(op, inputs)
    }
    op("RotaryEmbedding", since: 23) { (node) throws(ApusError) in
      RotaryEmbedding(
        isInterleaved: try node.attributes.flag("interleaved", false),
        turned: try node.attributes.int("rotary_embedding_dim", 0),
        heads: try node.attributes.optionalInt("num_heads"))
    }
    op("LinearAttention", since: 27) { (node) throws(ApusError) in
      node.attributes.ignore("chunk_size")
      return LinearAttention(
        rule: try node.choice("update_rule", LinearAttention.Rule.gatedDelta),
        queryHeads: try node.attributes.int("q_num_heads"),
        keyHeads: try node.attributes.int("kv_num_heads"),
        scale: try node.attributes.float("scale", 0))
    }
    op("TensorScatter", since: 24) { (node) throws(ApusError) in
      let mode = try node.attributes.string("mode", "linear")
      guard mode == "linear" || mode == "circular" else {
        throw ApusError(.invalidAttribute, "'mode' is '\(mode)', not linear or circular")
      }
      return TensorScatter(
        axis: try node.attributes.int("axis", -2), isCircular: mode == "circular")
    }
    on("FlexAttention", since: 1, domain: "ai.onnx.preview") { (node) throws(ApusError) in
      try node.flexAttention()
    }
    on("CausalConvWithState", since: 27) { (node) throws(ApusError) in try node.causalConvolution() }
    on("SwiGLU", since: 28) { (node) throws(ApusError) in
      let gate = try node.emit(
        Swish(alpha: try node.attributes.float("alpha", 1)), [try node.operand(0)])
      return try node.result(Mul(), [gate, try node.operand(1)])
    }
  }
}

extension NodeImport {
  /// A convolution over the past and the present of every channel, and what of them the next call needs.
  fileprivate func causalConvolution() throws(ApusError) -> [ValueID] {
    let x = try operand(0)
    let w = try operand(1)
    guard let dims = try tensorType(1).dims, dims.count == 3, let channels = dims[0].value,
      let length = dims[2].value
    else {
      throw ApusError(.notYetSupported, "weights whose sizes are not known before the model runs")
    }
    let activation = try attributes.string("activation", "none")
    guard ["none", "silu", "swish"].contains(activation) else {
      throw ApusError(.invalidAttribute, "'activation' is '\(activation)', not none, silu or swish")
    }
    let padded: ValueID
    if let past = optional(3) {
      padded = try emit(Concat(axis: 2), [past, x])
    } else {
      padded = try emit(Pad(mode: .constant), [x, try vector([0, 0, length - 1, 0, 0, 0])])
    }
    var y = try emit(Conv(group: channels), [padded, w, optional(2)])
    if activation != "none" { y = try emit(Swish(alpha: 1), [y]) }
    let state = try emit(
      Slice(), [padded, try vector([length == 1 ? .max : 1 - length]), try vector([.max]), try vector([2])])
    return [y, state]
  }
}

extension NodeImport {
  /// A mask as numbers to be added to scores of the query's type: kernels read no booleans.
  func addedMask(_ mask: ValueID) throws(ApusError) -> ValueID {
    guard case .tensor(let type) = type(of: mask), type.dataType == .bool else { return mask }
    let scores = try tensorType(0).dataType
    return try emit(Where(), [mask, try scalar(0, scores), try scalar(-.infinity, scores)])
  }

  /// Attention whose scores and probabilities pass through graphs of the model's own.
  fileprivate func flexAttention() throws(ApusError) -> [ValueID] {
    let (q, k, v) = (try operand(0), try operand(1), try operand(2))
    let type = try tensorType(0).dataType
    guard let dims = try tensorType(0).dims, let others = try tensorType(1).dims, dims.count == 4,
      others.count == 4, let heads = dims[1].value, let keyHeads = others[1].value, keyHeads > 0,
      heads % keyHeads == 0
    else {
      throw ApusError(.notYetSupported, "operands whose heads are not known before the model runs")
    }
    var scale = try attributes.optionalFloat("scale")
    if scale == nil, let width = dims[3].value { scale = 1 / Double(max(1, width)).squareRoot() }
    guard let scale else {
      throw ApusError(.notYetSupported, "a head size that is not known before the model runs")
    }
    let wanted = try attributes.dataType("softmax_precision")
    let inner = wanted ?? (type == .float64 ? .float64 : .float32)
    let keys = try repeated(k, heads / keyHeads)
    let values = try repeated(v, heads / keyHeads)
    let turned = try emit(Transpose(permutation: [0, 1, 3, 2]), [keys])
    let scaled = try emit(Mul(), [q, try scalar(scale, type)])
    var scores = try emit(MatMul(), [scaled, turned])
    if inner != type { scores = try emit(Cast(to: inner), [scores]) }
    scores = try passed(scores, through: "score_mod")
    var weights = try emit(Softmax(axis: -1), [scores])
    weights = try passed(weights, through: "prob_mod")
    let wide = inner == type ? values : try emit(Cast(to: inner), [values])
    if inner == type { return try result(MatMul(), [weights, wide]) }
    return try result(Cast(to: type), [try emit(MatMul(), [weights, wide])])
  }

  /// Every head `count` times, one after the other.
  private func repeated(_ value: ValueID, _ count: Int) throws(ApusError) -> ValueID {
    guard count > 1, case .tensor(let type) = type(of: value), let heads = type.dims?[1].value else {
      return value
    }
    let order = (0..<(heads * count)).map { $0 / count }
    return try emit(Gather(axis: 1), [value, try vector(order)])
  }

  /// A value after a graph attribute with one input; itself when there is none. The graph becomes both
  /// branches of a choice that is decided already, which the build then opens.
  private func passed(_ value: ValueID, through name: String) throws(ApusError) -> ValueID {
    guard attributes.has(name) else { return value }
    let captures = try captures([name])
    let body = try body(name, inputTypes: [type(of: value)], captures)
    let isTrue = add(try Tensor([1], .bool, shape: []))
    return try emit(
      If(thenBranch: body, elseBranch: body), [isTrue, value] + captures.operands)
  }
}
