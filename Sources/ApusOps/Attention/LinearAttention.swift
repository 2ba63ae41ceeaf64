// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Attention with a state that is written and read place by place (ONNX `LinearAttention`): operands
/// query, key, value, past state, decay, beta; results output and present state.
public struct LinearAttention: Operator {
  public static let name = "LinearAttention"

  /// How the state changes at a place: with the decay, and with what is already known taken off.
  public enum Rule: String, Sendable, Hashable, CaseIterable {
    case linear
    case gated
    case delta
    case gatedDelta = "gated_delta"

    var decays: Bool { self == .gated || self == .gatedDelta }
    var corrects: Bool { self == .delta || self == .gatedDelta }
  }

  public var rule: Rule
  public var queryHeads: Int
  public var keyHeads: Int
  /// The factor of the output; 0 for one over the root of the head size.
  public var scale: Double

  /// Creates the operator.
  public init(rule: Rule = .gatedDelta, queryHeads: Int, keyHeads: Int, scale: Double = 0) {
    self.rule = rule
    self.queryHeads = queryHeads
    self.keyHeads = keyHeads
    self.scale = scale
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    rule = try attributes.choice("rule", Rule.gatedDelta)
    queryHeads = try attributes.int("query_heads")
    keyHeads = try attributes.int("key_heads")
    scale = try attributes.float("scale", 0)
  }

  public var attributes: Attributes {
    [
      "rule": .string(rule.rawValue), "query_heads": .int(queryHeads),
      "key_heads": .int(keyHeads), "scale": .float(scale),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let q = try inputs.tensor(0)
    try inputs.requireFloat(0)
    let v = try inputs.tensor(2)
    guard queryHeads > 0, keyHeads > 0, queryHeads % keyHeads == 0 else {
      throw ApusError(.invalidAttribute, "\(queryHeads) query heads for \(keyHeads) key heads")
    }
    guard rule.decays == inputs.has(4), rule.corrects == inputs.has(5) else {
      throw ApusError(.typeMismatch, "the rule '\(rule.rawValue)' does not go with these operands")
    }
    let stateType = inputs.has(3) ? try inputs.tensor(3).dataType : q.dataType
    guard let dims = q.dims, let others = v.dims, dims.count == 3, others.count == 3,
      let width = dims[2].value, let valueWidth = others[2].value
    else { return [typed(q.dataType, nil), typed(stateType, nil)] }
    guard width % queryHeads == 0, valueWidth % keyHeads == 0 else {
      throw ApusError(.typeMismatch, "\(q) and \(v) do not hold the heads")
    }
    let (keySize, valueSize) = (width / queryHeads, valueWidth / keyHeads)
    return [
      typed(q.dataType, [dims[0], dims[1], Dim(queryHeads * valueSize)]),
      typed(stateType, [dims[0], Dim(keyHeads), Dim(keySize), Dim(valueSize)]),
    ]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let types = try infer(InferenceInputs(types: inputs.map { $0?.type }, outputCount: 2))
    let query = try inputs.required(0)
    let q = try HeadTensor(query, heads: queryHeads)
    let k = try HeadTensor(try inputs.required(1), heads: keyHeads)
    let v = try HeadTensor(try inputs.required(2), heads: keyHeads)
    guard k.batch == q.batch, k.places == q.places, k.width == q.width, v.batch == q.batch,
      v.places == q.places
    else { throw ApusError(.typeMismatch, "query, key and value do not fit together") }
    var state = try HeadTensor(batch: q.batch, heads: keyHeads, places: q.width, width: v.width)
    if let past = try inputs.optional(3) {
      guard past.shape == [q.batch, keyHeads, q.width, v.width] else {
        throw ApusError(.typeMismatch, "the past state is \(past.type)")
      }
      state.values = past.doubles()
    }
    let decay = try perPlace(try inputs.optional(4), q, widths: [keyHeads, keyHeads * q.width])
    let beta = try perPlace(try inputs.optional(5), q, widths: [keyHeads, 1])
    var y = try HeadTensor(batch: q.batch, heads: queryHeads, places: q.places, width: v.width)
    let factor = scale == 0 ? 1 / Double(q.width).squareRoot() : scale
    for b in 0..<q.batch {
      for p in 0..<q.places {
        for h in 0..<keyHeads {
          update(&state, b, h, p, k, v, decay, beta)
          for g in (h * queryHeads / keyHeads)..<((h + 1) * queryHeads / keyHeads) {
            let (source, target) = (q.offset(b, g, p), y.offset(b, g, p))
            for d in 0..<q.width {
              let row = state.offset(b, h, d)
              for m in 0..<v.width {
                y.values[target + m] += factor * q.values[source + d] * state.values[row + m]
              }
            }
          }
        }
      }
    }
    guard case .tensor(let stateType)? = types.last else { return [] }
    return [
      .tensor(try y.tensor(query.dataType, sideBySide: true)),
      .tensor(try state.tensor(stateType.dataType)),
    ]
  }

  /// Numbers `[batch, place, width]` for each place.
  private struct PerPlace {
    var values: [Double]
    var width: Int
    var places: Int

    func at(_ b: Int, _ p: Int, _ index: Int) -> Double {
      values[(b * places + p) * width + (width == 1 ? 0 : index)]
    }
  }

  private func perPlace(_ tensor: Tensor?, _ q: HeadTensor, widths: [Int]) throws(ApusError)
    -> PerPlace?
  {
    guard let tensor else { return nil }
    guard tensor.rank == 3, tensor.shape[0] == q.batch, tensor.shape[1] == q.places,
      widths.contains(tensor.shape[2])
    else { throw ApusError(.typeMismatch, "decay or beta is \(tensor.type)") }
    return PerPlace(values: tensor.doubles(), width: tensor.shape[2], places: q.places)
  }

  private func update(
    _ state: inout HeadTensor, _ b: Int, _ h: Int, _ p: Int, _ k: HeadTensor, _ v: HeadTensor,
    _ decay: PerPlace?, _ beta: PerPlace?
  ) {
    let (key, value) = (k.offset(b, h, p), v.offset(b, h, p))
    if let decay {
      for d in 0..<k.width {
        let index = decay.width == keyHeads ? h : h * k.width + d
        let kept = exp(decay.at(b, p, index))
        let row = state.offset(b, h, d)
        for m in 0..<v.width { state.values[row + m] *= kept }
      }
    }
    for m in 0..<v.width {
      var written = v.values[value + m]
      if let beta {
        var known = 0.0
        for d in 0..<k.width { known += state.values[state.offset(b, h, d) + m] * k.values[key + d] }
        written = beta.at(b, p, h) * (written - known)
      }
      for d in 0..<k.width { state.values[state.offset(b, h, d) + m] += k.values[key + d] * written }
    }
  }
}
