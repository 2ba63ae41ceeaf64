// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Attention in the forms of the domain `com.microsoft`, which exporters of language models emit. All
/// become the standard operator, with their masks spelled out.
extension ONNXOperatorTable {
  mutating func addContribAttention(_ domain: String) {
    on("Attention", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.refuse(["do_rotary", "past_present_share_buffer"])
      return try node.projectedAttention(
        try node.operand(0), try node.operand(1), mask: 3, past: 4, bias: node.optional(5))
    }
    on("QAttention", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.refuse(["do_rotary", "past_present_share_buffer"])
      let x = try node.emit(
        DequantizeLinear(axis: 0), [try node.operand(0), try node.operand(3), node.optional(6)])
      let w = try node.emit(
        DequantizeLinear(axis: 1), [try node.operand(1), try node.operand(4), node.optional(7)])
      return try node.projectedAttention(x, w, mask: 5, past: 8, bias: nil)
    }
    on("MultiHeadAttention", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.multiHeadAttention()
    }
    on("GroupQueryAttention", since: 1, domain: domain) { (node) throws(ApusError) in
      try node.groupQueryAttention()
    }
  }
}

extension NodeImport {
  /// Attributes that change what a node means in a way that is not built.
  fileprivate func refuse(_ names: [String]) throws(ApusError) {
    for name in names where try attributes.int(name, 0) > 0 {
      throw ApusError(.notYetSupported, "'\(name)' is set")
    }
  }

  /// The length of an axis while the model runs.
  private func length(_ value: ValueID, _ axis: Int) throws(ApusError) -> ValueID {
    try emit(Gather(axis: 0), [try emit(Shape(), [value]), try scalar(Double(axis), .int64)])
  }

  /// `0, 1, ... count - 1`.
  private func places(_ count: ValueID) throws(ApusError) -> ValueID {
    try emit(NumberRange(), [try scalar(0, .int64), count, try scalar(1, .int64)])
  }

  private func dim(_ value: ValueID, _ axis: Int) -> Int? {
    guard case .tensor(let type) = type(of: value), let dims = type.dims, axis < dims.count else {
      return nil
    }
    return dims[axis].value
  }

  /// The places of `RotaryEmbedding`'s rows, which may be given by that of the first one alone.
  func rotaryPlaces() throws(ApusError) -> ValueID {
    let given = try operand(1)
    guard try rank(of: given) == 1 else { return given }
    let x = try operand(0)
    let row = try emit(Add(), [given, try places(try length(x, try rank(of: x) - 2))])
    let ones = try emit(Unsqueeze(), [try length(x, 0), try vector([0])])
    let sizes = try emit(Concat(axis: 0), [ones, try vector([1])])
    return try emit(Expand(), [try emit(Unsqueeze(), [row, try vector([0])]), sizes])
  }

  /// What is added to the scores, `[batch, 1, queries or 1, keys]`, for a mask of keys in any of its
  /// forms: ones and zeros per key, per query and key, or the places where keys end (and start).
  private func keyMask(_ mask: ValueID, keys: ValueID, batch: Int?, type: DataType)
    throws(ApusError) -> ValueID
  {
    let filter = try attributes.float("mask_filter_value", -10000)
    let isSeen: ValueID
    switch try rank(of: mask) {
    case 1:
      let ends = try emit(Cast(to: .int64), [mask])
      let places = try places(keys)
      let count = dim(mask, 0)
      guard let count, let batch, count != batch else {
        isSeen = try emit(Less(), [places, try emit(Unsqueeze(), [ends, try vector([1, 2, 3])])])
        break
      }
      guard count == 2 * batch else {
        throw ApusError(.notYetSupported, "a mask of \(count) places for a batch of \(batch)")
      }
      let parts = try emit(Split(axis: 0, numOutputs: 2), [ends], outputCount: 2)
      let end = try emit(Unsqueeze(), [parts[0], try vector([1, 2, 3])])
      let start = try emit(Unsqueeze(), [parts[1], try vector([1, 2, 3])])
      isSeen = try emit(
        And(), [try emit(Less(), [places, end]), try emit(LessOrEqual(), [start, places])])
    case 2, 3:
      let axes = try rank(of: mask) == 2 ? [1, 2] : [1]
      let zero = try emit(Cast(to: .int64), [try emit(Unsqueeze(), [mask, try vector(axes)])])
      isSeen = try emit(Greater(), [zero, try scalar(0, .int64)])
    default: throw ApusError(.notYetSupported, "a mask of rank 4, which holds the causal triangle")
    }
    return try emit(Where(), [isSeen, try scalar(0, type), try scalar(filter, type)])
  }

  /// Two biases of scores, either of which may be missing.
  private func joined(_ a: ValueID?, _ b: ValueID?) throws(ApusError) -> ValueID? {
    guard let a, let b else { return a ?? b }
    return try emit(Add(), [a, b])
  }

  /// `Attention` after the projection of its one input to queries, keys and values.
  fileprivate func projectedAttention(
    _ x: ValueID, _ w: ValueID, mask maskIndex: Int, past pastIndex: Int, bias: ValueID?
  ) throws(ApusError) -> [ValueID] {
    var projected = try emit(MatMul(), [x, w])
    if let b = optional(2) { projected = try emit(Add(), [projected, b]) }
    let sizes = try attributes.ints("qkv_hidden_sizes", [])
    let parts = try emit(
      Split(axis: 2, numOutputs: sizes.isEmpty ? 3 : nil),
      [projected, sizes.isEmpty ? nil : try vector(sizes)], outputCount: 3)
    var (pastKey, pastValue): (ValueID?, ValueID?) = (nil, nil)
    var keys = try length(parts[1], 1)
    if let past = optional(pastIndex) {
      pastKey = try emit(Gather(axis: 0), [past, try scalar(0, .int64)])
      pastValue = try emit(Gather(axis: 0), [past, try scalar(1, .int64)])
      keys = try emit(Add(), [keys, try length(past, 3)])
    }
    guard case .tensor(let type) = type(of: projected) else { return [] }
    let mask = try optional(maskIndex).map { (mask) throws(ApusError) in
      try keyMask(mask, keys: keys, batch: dim(x, 0), type: type.dataType)
    }
    let op = try headAttention(isCausal: try attributes.flag("unidirectional", false))
    let inputs = [parts[0], parts[1], parts[2], try joined(mask, bias), pastKey, pastValue]
    guard outputCount > 1 else { return try result(op, trimmed(inputs)) }
    let results = try emit(op, inputs, outputCount: 3)
    let both = try emit(
      Concat(axis: 0),
      [
        try emit(Unsqueeze(), [results[1], try vector([0])]),
        try emit(Unsqueeze(), [results[2], try vector([0])]),
      ])
    return [results[0], both]
  }

  /// Omitted operands at the end are dropped.
  private func trimmed(_ inputs: [ValueID?]) -> [ValueID?] {
    Array(inputs[...(inputs.lastIndex { $0 != nil } ?? 0)])
  }

  /// The standard operator with this node's heads and factor.
  private func headAttention(isCausal: Bool) throws(ApusError) -> Attention {
    let heads = try attributes.int("num_heads")
    let scale = try attributes.float("scale", 0)
    return Attention(
      isCausal: isCausal, queryHeads: heads, keyHeads: heads, scale: scale == 0 ? nil : scale,
      scoreMode: 3)
  }

  /// Parts of a tensor that holds several side by side on axis 3, heads folded into the last axis.
  private func unpacked(_ value: ValueID, _ index: Int) throws(ApusError) -> ValueID {
    let part = try emit(Gather(axis: 3), [value, try scalar(Double(index), .int64)])
    return try emit(Reshape(), [part, try vector([0, 0, -1])])
  }

  fileprivate func multiHeadAttention() throws(ApusError) -> [ValueID] {
    guard optional(8) == nil, optional(9) == nil else {
      throw ApusError(.notYetSupported, "past keys in a buffer that is shared")
    }
    var q = try operand(0)
    var (k, v): (ValueID, ValueID)
    if try rank(of: q) == 5 {
      (k, v) = (try unpacked(q, 1), try unpacked(q, 2))
      q = try unpacked(q, 0)
    } else if let key = optional(1), try rank(of: key) == 5 {
      (k, v) = (try unpacked(key, 0), try unpacked(key, 1))
    } else {
      (k, v) = (try operand(1), try operand(2))
    }
    if let bias = optional(3) {
      var parts: [ValueID]
      if let width = dim(q, 2), let total = dim(bias, 0) {
        parts = try emit(
          Split(axis: 0), [bias, try vector([width, width, total - 2 * width])], outputCount: 3)
      } else {
        parts = try emit(Split(axis: 0, numOutputs: 3), [bias], outputCount: 3)
      }
      q = try emit(Add(), [q, parts[0]])
      // Keys of four axes are those of an encoder, which hold their bias already.
      if try rank(of: k) == 3 { k = try emit(Add(), [k, parts[1]]) }
      if try rank(of: v) == 3 { v = try emit(Add(), [v, parts[2]]) }
    }
    var keys = try length(k, try rank(of: k) == 4 ? 2 : 1)
    if let past = optional(6) { keys = try emit(Add(), [keys, try length(past, 2)]) }
    let type = try tensorType(0).dataType
    let mask = try optional(4).map { (mask) throws(ApusError) in
      try keyMask(mask, keys: keys, batch: dim(q, 0), type: type)
    }
    let op = try headAttention(isCausal: try attributes.flag("unidirectional", false))
    return try result(
      op, trimmed([q, k, v, try joined(mask, optional(5)), optional(6), optional(7)]))
  }
}

extension NodeImport {
  /// Keys and values in a cache that every call extends, shared by groups of query heads, with places
  /// turned by rotary embedding: the batch's rows have `seqlens_k + 1` keys each.
  fileprivate func groupQueryAttention() throws(ApusError) -> [ValueID] {
    try refuse(["smooth_softmax", "sliding_window_cache", "qk_output", "kv_cache_bit_width"])
    for index in [11, 12, 13, 16] where optional(index) != nil {
      throw ApusError(.notYetSupported, "operand \(index) is given")
    }
    let heads = try attributes.int("num_heads")
    let keyHeads = try attributes.int("kv_num_heads")
    var (q, k, v) = try groupedOperands(heads, keyHeads)
    if let weights = optional(14) { q = try normalised(q, heads, weights, "q_norm_epsilon") }
    if let weights = optional(15) { k = try normalised(k, keyHeads, weights, "k_norm_epsilon") }
    let one = try scalar(1, .int64)
    let valid = try emit(Add(), [try emit(Cast(to: .int64), [try operand(5)]), one])
    let new = try length(q, 1)
    // A first prompt may be padded at its end: then there are fewer keys than queries.
    let start = try emit(
      Max(), [try emit(Sub(), [valid, new]), try scalar(0, .int64)])
    let column = try emit(Reshape(), [start, try vector([-1, 1])])
    let positions = try emit(Add(), [column, try places(new)])
    if try attributes.flag("do_rotary", false) {
      let caches = [try operand(7), try operand(8), optional(9) ?? positions]
      let isInterleaved = try attributes.flag("rotary_interleaved", false)
      // The caches' width tells how much of a head is turned.
      let turned = dim(caches[0], 1).map { 2 * $0 } ?? 0
      q = try emit(
        RotaryEmbedding(isInterleaved: isInterleaved, turned: turned, heads: heads), [q] + caches)
      k = try emit(
        RotaryEmbedding(isInterleaved: isInterleaved, turned: turned, heads: keyHeads), [k] + caches)
    }
    let keys = try extended(optional(3), by: k, keyHeads, at: start)
    let values = try extended(optional(4), by: v, keyHeads, at: start)
    let mask = try windowMask(positions, keys: try length(keys, 2))
    let scale = try attributes.float("scale", 0)
    let op = Attention(
      queryHeads: heads, keyHeads: keyHeads, scale: scale == 0 ? nil : scale,
      softCap: try attributes.float("softcap", 0))
    let y = try emit(op, [q, keys, values, mask])
    return Array([y, keys, values].prefix(max(1, outputCount)))
  }

  /// Query, key and value, which may come side by side in one operand.
  private func groupedOperands(_ heads: Int, _ keyHeads: Int) throws(ApusError) -> (
    ValueID, ValueID, ValueID
  ) {
    let q = try operand(0)
    if let k = optional(1), let v = optional(2) { return (q, k, v) }
    guard let width = dim(q, 2), heads > 0, keyHeads > 0, width % (heads + 2 * keyHeads) == 0 else {
      throw ApusError(.typeMismatch, "the query does not hold \(heads) heads and \(keyHeads) pairs")
    }
    let size = width / (heads + 2 * keyHeads)
    let sizes = try vector([heads * size, keyHeads * size, keyHeads * size])
    let parts = try emit(Split(axis: 2), [q, sizes], outputCount: 3)
    return (parts[0], parts[1], parts[2])
  }

  /// Every head divided by the root of its mean square.
  private func normalised(_ x: ValueID, _ heads: Int, _ weights: ValueID, _ epsilon: String)
    throws(ApusError) -> ValueID
  {
    let fallback = try attributes.float("qk_norm_epsilon", 1e-6)
    let op = RMSNormalization(axis: -1, epsilon: try attributes.float(epsilon, fallback))
    let split = try emit(Reshape(), [x, try vector([0, 0, heads, -1])])
    return try emit(Reshape(), [try emit(op, [split, weights]), try vector([0, 0, -1])])
  }

  /// The past with new places written from `start` on, as long as the longer of both.
  private func extended(_ past: ValueID?, by new: ValueID, _ heads: Int, at start: ValueID)
    throws(ApusError) -> ValueID
  {
    let split = try emit(Reshape(), [new, try vector([0, 0, heads, -1])])
    let added = try emit(Transpose(permutation: [0, 2, 1, 3]), [split])
    guard let past else { return added }
    let total = try emit(Cast(to: .int64), [try operand(6)])
    let room = try emit(Sub(), [try emit(Squeeze(), [total]), try length(past, 2)])
    let missing = try emit(Max(), [room, try scalar(0, .int64)])
    let behind = try emit(Reshape(), [missing, try vector([1])])
    let pads = try emit(
      Concat(axis: 0), [try vector([0, 0, 0, 0, 0, 0]), behind, try vector([0])])
    let cache = try emit(Pad(mode: .constant), [past, pads])
    return try emit(TensorScatter(axis: 2), [cache, added, start])
  }

  /// Which keys each place sees, `[batch, 1, queries, keys]`.
  private func windowMask(_ positions: ValueID, keys: ValueID) throws(ApusError) -> ValueID? {
    let row = try emit(Unsqueeze(), [positions, try vector([1, 3])])
    let columns = try places(keys)
    let window = try attributes.int("local_window_size", -1)
    var isSeen = try emit(LessOrEqual(), [columns, row])
    if try !attributes.flag("causal", true) {
      let valid = try emit(Unsqueeze(), [try operand(5), try vector([1, 2, 3])])
      isSeen = try emit(LessOrEqual(), [columns, try emit(Cast(to: .int64), [valid])])
    } else if window > 0 {
      let first = try emit(Sub(), [row, try scalar(Double(window), .int64)])
      isSeen = try emit(And(), [isSeen, try emit(Less(), [first, columns])])
    }
    guard let bias = optional(10) else { return try addedMask(isSeen) }
    let type = try tensorType(0).dataType
    return try emit(Where(), [isSeen, bias, try scalar(-.infinity, type)])
  }
}
