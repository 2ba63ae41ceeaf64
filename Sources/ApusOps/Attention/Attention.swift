// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Scaled dot-product attention (ONNX `Attention`): `softmax(cap(q k^T scale) + bias) v` for every head,
/// heads of keys and values shared by groups of query heads.
///
/// Operands: q, k, v, mask, past key, past value, valid key counts. Results: y, present key, present
/// value, scores. Operands of three axes hold all heads side by side in the last one.
public struct Attention: CostedOperator, TolerantOperator, SampledOperator {
  public static let name = "Attention"
  /// Whether a query sees only keys up to its own place.
  public var isCausal: Bool
  /// Heads, for operands of three axes.
  public var queryHeads: Int?
  public var keyHeads: Int?
  /// The factor of the scores; nil for one over the root of the head size.
  public var scale: Double?
  /// Scores are squeezed into `-softCap...softCap`; 0 leaves them alone.
  public var softCap: Double
  /// What the fourth result is: 0 the products, 1 capped, 2 with bias, 3 after the softmax.
  public var scoreMode: Int
  /// Keys before and behind a query's place that it sees; -1 for all.
  public var leftWindow: Int
  public var rightWindow: Int
  /// The type of the sums and the result, when it is not that of the operands.
  public var sumType: DataType?
  /// Whether a query that sees no key gives NaN, as a softmax by itself does, instead of zeros.
  public var keepsNaN: Bool

  /// Creates the operator.
  public init(
    isCausal: Bool = false, queryHeads: Int? = nil, keyHeads: Int? = nil, scale: Double? = nil,
    softCap: Double = 0, scoreMode: Int = 0, leftWindow: Int = -1, rightWindow: Int = -1,
    sumType: DataType? = nil, keepsNaN: Bool = false
  ) {
    self.isCausal = isCausal
    self.queryHeads = queryHeads
    self.keyHeads = keyHeads
    self.scale = scale
    self.softCap = softCap
    self.scoreMode = scoreMode
    self.leftWindow = leftWindow
    self.rightWindow = rightWindow
    self.sumType = sumType
    self.keepsNaN = keepsNaN
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    isCausal = try attributes.bool("is_causal", false)
    let heads = try attributes.int("query_heads", 0)
    queryHeads = heads == 0 ? nil : heads
    let others = try attributes.int("key_heads", 0)
    keyHeads = others == 0 ? nil : others
    let factor = try attributes.float("scale", .nan)
    scale = factor.isNaN ? nil : factor
    softCap = try attributes.float("soft_cap", 0)
    scoreMode = try attributes.int("score_mode", 0)
    leftWindow = try attributes.int("left_window", -1)
    rightWindow = try attributes.int("right_window", -1)
    sumType = try SumType.read(&attributes)
    guard sumType.map(\.isFloat) ?? true else {
      throw ApusError(.invalidAttribute, "attention does not sum in integers")
    }
    keepsNaN = try attributes.bool("keeps_nan", false)
  }

  public var attributes: Attributes {
    var result: Attributes = [
      "is_causal": .bool(isCausal), "query_heads": .int(queryHeads ?? 0),
      "key_heads": .int(keyHeads ?? 0), "soft_cap": .float(softCap),
      "score_mode": .int(scoreMode), "left_window": .int(leftWindow),
      "right_window": .int(rightWindow),
    ]
    if let scale { result["scale"] = .float(scale) }
    if let sumType { result["sum_type"] = .type(sumType) }
    if keepsNaN { result["keeps_nan"] = .bool(true) }
    return result
  }

  /// Sizes along the axes batch, head, place and element of a head.
  private func heads(_ type: TensorType, _ count: Int?, _ what: String) throws(ApusError) -> [Dim]? {
    guard let dims = type.dims else { return nil }
    if dims.count == 4 { return dims }
    guard dims.count == 3, let count, count > 0 else {
      throw ApusError(
        .typeMismatch, "\(what) is \(type); it needs four axes, or three and a number of heads")
    }
    guard let width = dims[2].value else { return [dims[0], Dim(count), dims[1], .symbol("head")] }
    guard width % count == 0 else {
      throw ApusError(.typeMismatch, "\(what) is \(type), which is not \(count) heads wide")
    }
    return [dims[0], Dim(count), dims[1], Dim(width / count)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let q = try inputs.tensor(0)
    let type = sumType ?? q.dataType
    try inputs.requireFloat(0)
    guard let a = try heads(q, queryHeads, "the query"),
      let b = try heads(try inputs.tensor(1), keyHeads, "the key"),
      let c = try heads(try inputs.tensor(2), keyHeads, "the value")
    else { return (0..<max(1, inputs.outputCount)).map { _ in typed(type, nil) } }
    var length = b[2]
    if inputs.has(4) {
      guard let past = try inputs.tensor(4).dims, past.count == 4 else {
        return (0..<max(1, inputs.outputCount)).map { _ in typed(type, nil) }
      }
      length = past[2] + b[2]
    }
    var y = [a[0], a[1], a[2], c[3]]
    if q.dims?.count == 3 {
      y = [a[0], a[2], a[1].value.flatMap { h in c[3].value.map { Dim(h * $0) } } ?? inputs.freshDim("y")]
    }
    let results = [
      typed(type, y), typed(type, [b[0], b[1], length, b[3]]),
      typed(type, [c[0], c[1], length, c[3]]), typed(type, [a[0], a[1], a[2], length]),
    ]
    return Array(results.prefix(max(1, inputs.outputCount)))
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard let q = inputs.first??.shape, inputs.count > 1, let k = inputs[1]?.shape else { return 0 }
    let keys = k.count == 4 ? k[2] : k.count == 3 ? k[1] : 1
    return 4 * q.reduce(1.0) { $0 * Double($1) } * Double(keys)
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    // Kernels round the weights to the type of the values.
    let isNarrow = inputs.first??.dataType == .bfloat16
    return type == .float64 ? 1e-12 : (type == .float32 && !isNarrow ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try AttentionRun(self, inputs).results()
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    let run = try AttentionRun(self, inputs.map { $0.map { RuntimeValue.tensor($0) } })
    return try run.samples(at: linearIndices)
  }
}

extension Attention: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.enumerated().allSatisfy { index, operand in
      guard let operand else { return index > 2 }
      // A mask is broadcast to the scores, which have four axes; all others have the batch first.
      return index == 3 ? !operand.isBatched || operand.rank == 4 : operand.isBatched
    }
  }
}
