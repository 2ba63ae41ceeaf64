// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// New places written into a cache (ONNX `TensorScatter`): operands the cache, the update, and for each
/// member of the batch where along `axis` it starts.
public struct TensorScatter: Operator {
  public static let name = "TensorScatter"
  public var axis: Int
  /// Whether places behind the end continue at the start.
  public var isCircular: Bool

  /// Creates the operator.
  public init(axis: Int = -2, isCircular: Bool = false) {
    self.axis = axis
    self.isCircular = isCircular
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -2)
    isCircular = try attributes.bool("circular", false)
  }

  public var attributes: Attributes { ["axis": .int(axis), "circular": .bool(isCircular)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let cache = try inputs.tensor(0)
    guard try inputs.tensor(1).dataType == cache.dataType else {
      throw ApusError(.typeMismatch, "an update of \(try inputs.tensor(1)) for \(cache)")
    }
    return [.tensor(cache)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let cache = try inputs.required(0)
    let update = try inputs.required(1)
    let at = try Axis.resolved(axis, rank: cache.rank)
    var expected = cache.shape
    if at < update.rank { expected[at] = update.shape[at] }
    guard at > 0, update.shape == expected, update.dataType == cache.dataType,
      update.shape[at] <= cache.shape[at]
    else { throw ApusError(.typeMismatch, "an update of \(update.type) for \(cache.type) at \(axis)") }
    let starts = try inputs.optional(2)?.ints() ?? Array(repeating: 0, count: cache.shape[0])
    guard starts.count == cache.shape[0] else {
      throw ApusError(.typeMismatch, "\(starts.count) starts for a batch of \(cache.shape[0])")
    }
    let (outer, size, inner) = Axis.split(cache.shape, at: at)
    let length = update.shape[at]
    var result = try ElementBuffer(cache.dataType, shape: cache.shape)
    result.copy(from: cache, count: cache.count) { ($0, $0) }
    var moves: [(Int, Int)] = []
    for block in 0..<outer {
      let start = starts[block / max(1, outer / max(1, cache.shape[0]))]
      for step in 0..<length {
        var place = start &+ step
        if isCircular, size > 0 { place = ((place % size) + size) % size }
        guard place >= 0, place < size else {
          throw ApusError(.execution, "place \(place) is outside a cache of \(size)")
        }
        for lane in 0..<inner {
          moves.append(((block * size + place) * inner + lane, (block * length + step) * inner + lane))
        }
      }
    }
    result.copy(from: update, count: moves.count) { moves[$0] }
    return [.tensor(try result.finished())]
  }
}
