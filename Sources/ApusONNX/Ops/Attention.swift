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
      return try node.result(op, node.inputs)
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
