// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Pairs of a head's elements turned by an angle that depends on the place (ONNX `RotaryEmbedding`):
/// operands x, cosines, sines, places. The caches are `[places, pairs]`, or `[batch, length, pairs]`
/// without places.
public struct RotaryEmbedding: TolerantOperator {
  public static let name = "RotaryEmbedding"
  /// Whether pairs lie side by side instead of half a head apart.
  public var isInterleaved: Bool
  /// Elements of each head that are turned; 0 for all.
  public var turned: Int
  /// Heads, for operands of three axes.
  public var heads: Int?

  /// Creates the operator.
  public init(isInterleaved: Bool = false, turned: Int = 0, heads: Int? = nil) {
    self.isInterleaved = isInterleaved
    self.turned = turned
    self.heads = heads
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    isInterleaved = try attributes.bool("interleaved", false)
    turned = try attributes.int("turned", 0)
    let count = try attributes.int("heads", 0)
    heads = count == 0 ? nil : count
  }

  public var attributes: Attributes {
    ["interleaved": .bool(isInterleaved), "turned": .int(turned), "heads": .int(heads ?? 0)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try inputs.requireFloat(0)
    try inputs.requireFloat(1)
    try inputs.requireFloat(2)
    return [.tensor(try inputs.tensor(0))]
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 2e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let tensor = try inputs.required(0)
    var x = try HeadTensor(tensor, heads: heads)
    let cosine = try inputs.required(1)
    let sine = try inputs.required(2)
    let places = try inputs.optional(3)
    let count = turned == 0 ? x.width : turned
    let pairs = count / 2
    guard count >= 0, count % 2 == 0, count <= x.width, cosine.shape == sine.shape,
      cosine.shape.last == pairs, cosine.rank == (places == nil ? 3 : 2)
    else {
      throw ApusError(
        .typeMismatch, "caches \(cosine.type) and \(sine.type) for turning \(count) elements of "
          + "\(tensor.type)")
    }
    guard places.map({ $0.shape == [x.batch, x.places] }) ?? (cosine.shape[0] == x.batch && cosine.shape[1] == x.places)
    else { throw ApusError(.typeMismatch, "the places do not fit \(tensor.type)") }
    let rows = places?.ints() ?? Array(0..<(x.batch * x.places))
    let (cosines, sines) = (cosine.doubles(), sine.doubles())
    let rowCount = pairs == 0 ? 0 : cosines.count / pairs
    for b in 0..<x.batch {
      for p in 0..<x.places {
        let row = rows[b * x.places + p]
        guard row >= 0, row < rowCount || pairs == 0 else {
          throw ApusError(.execution, "place \(row) is outside a cache of \(rowCount)")
        }
        for h in 0..<x.heads {
          let start = x.offset(b, h, p)
          for pair in 0..<pairs {
            let first = start + (isInterleaved ? 2 * pair : pair)
            let second = start + (isInterleaved ? 2 * pair + 1 : pair + pairs)
            let (c, s) = (cosines[row * pairs + pair], sines[row * pairs + pair])
            let (u, w) = (x.values[first], x.values[second])
            x.values[first] = c * u - s * w
            x.values[second] = s * u + c * w
          }
        }
      }
    }
    return [.tensor(try x.tensor(tensor.dataType, sideBySide: tensor.rank == 3))]
  }
}
