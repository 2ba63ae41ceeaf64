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

/// Elements along batch, head, place and element of a head.
struct HeadTensor {
  var batch: Int
  var heads: Int
  var places: Int
  var width: Int
  var values: [Double]

  /// Reads a tensor of four axes, or of three with `heads` heads side by side in the last one.
  init(_ tensor: Tensor, heads count: Int?) throws(ApusError) {
    let shape = tensor.shape
    let elements = tensor.doubles()
    if shape.count == 4 {
      (batch, heads, places, width) = (shape[0], shape[1], shape[2], shape[3])
      values = elements
      return
    }
    guard shape.count == 3, let count, count > 0, shape[2] % count == 0 else {
      throw ApusError(.typeMismatch, "\(tensor.type) does not hold heads")
    }
    (batch, heads, places, width) = (shape[0], count, shape[1], shape[2] / count)
    values = elements
    for b in 0..<batch {
      for h in 0..<heads {
        for p in 0..<places {
          for w in 0..<width {
            values[((b * heads + h) * places + p) * width + w] =
              elements[(b * places + p) * heads * width + h * width + w]
          }
        }
      }
    }
  }

  /// Zeros.
  init(batch: Int, heads: Int, places: Int, width: Int) throws(ApusError) {
    (self.batch, self.heads, self.places, self.width) = (batch, heads, places, width)
    values = Array(repeating: 0, count: try Tensor.checkedCount([batch, heads, places, width]))
  }

  /// The first element of a place.
  func offset(_ b: Int, _ h: Int, _ p: Int) -> Int { ((b * heads + h) * places + p) * width }

  /// The tensor with four axes, or with the heads side by side.
  func tensor(_ type: DataType, sideBySide: Bool = false) throws(ApusError) -> Tensor {
    guard sideBySide else {
      return try Tensor(values, type, shape: [batch, heads, places, width])
    }
    var elements = values
    for b in 0..<batch {
      for h in 0..<heads {
        for p in 0..<places {
          for w in 0..<width {
            elements[(b * places + p) * heads * width + h * width + w] = values[offset(b, h, p) + w]
          }
        }
      }
    }
    return try Tensor(elements, type, shape: [batch, places, heads * width])
  }

  /// The places of `self`, then those of `other`.
  func followed(by other: HeadTensor) throws(ApusError) -> HeadTensor {
    guard batch == other.batch, heads == other.heads, width == other.width else {
      throw ApusError(.typeMismatch, "the past does not fit the keys or values")
    }
    var result = try HeadTensor(
      batch: batch, heads: heads, places: places + other.places, width: width)
    for b in 0..<batch {
      for h in 0..<heads {
        let start = result.offset(b, h, 0)
        let (own, more) = (offset(b, h, 0), other.offset(b, h, 0))
        for i in 0..<(places * width) { result.values[start + i] = values[own + i] }
        for i in 0..<(other.places * width) {
          result.values[start + places * width + i] = other.values[more + i]
        }
      }
    }
    return result
  }
}

/// One evaluation of `Attention`.
struct AttentionRun {
  private let op: Attention
  private let type: DataType
  private let isSideBySide: Bool
  private let q: HeadTensor
  private let k: HeadTensor
  private let v: HeadTensor
  private let mask: Tensor?
  private let maskValues: [Double]
  private let pastLength: Int?
  private let validKeys: [Int]?

  init(_ op: Attention, _ inputs: [RuntimeValue?]) throws(ApusError) {
    self.op = op
    let query = try inputs.required(0)
    type = op.sumType ?? query.dataType
    isSideBySide = query.rank == 3
    q = try HeadTensor(query, heads: op.queryHeads)
    var keys = try HeadTensor(try inputs.required(1), heads: op.keyHeads)
    var values = try HeadTensor(try inputs.required(2), heads: op.keyHeads)
    if let past = try inputs.optional(4), let pastValues = try inputs.optional(5) {
      let before = try HeadTensor(past, heads: nil)
      pastLength = before.places
      keys = try before.followed(by: keys)
      values = try HeadTensor(pastValues, heads: nil).followed(by: values)
    } else {
      pastLength = nil
    }
    (k, v) = (keys, values)
    mask = try inputs.optional(3)
    maskValues = mask?.doubles() ?? []
    validKeys = try inputs.optional(6)?.ints()
    guard k.batch == q.batch, v.batch == q.batch, k.width == q.width, k.places == v.places,
      k.heads > 0, q.heads % k.heads == 0, v.heads == k.heads,
      validKeys.map({ $0.count == q.batch }) ?? true
    else {
      throw ApusError(.typeMismatch, "query, key and value do not fit together")
    }
    if let mask, mask.rank > 4 || (mask.shape.last ?? 1) > k.places {
      throw ApusError(.typeMismatch, "the mask \(mask.type) does not fit \(k.places) keys")
    }
  }

  func results() throws(ApusError) -> [RuntimeValue] {
    var y = try HeadTensor(batch: q.batch, heads: q.heads, places: q.places, width: v.width)
    var exposed = try HeadTensor(batch: q.batch, heads: q.heads, places: q.places, width: k.places)
    for b in 0..<q.batch {
      for h in 0..<q.heads {
        for p in 0..<q.places {
          let row = try weights(b, h, p)
          let place = exposed.offset(b, h, p)
          exposed.values.replaceSubrange(place..<(place + k.places), with: row.exposed)
          let target = y.offset(b, h, p)
          for (j, weight) in row.weights.enumerated() where weight != 0 {
            let source = v.offset(b, h / group, j)
            for w in 0..<v.width { y.values[target + w] += weight * v.values[source + w] }
          }
        }
      }
    }
    return [
      .tensor(try y.tensor(type, sideBySide: isSideBySide)), .tensor(try k.tensor(type)),
      .tensor(try v.tensor(type)), .tensor(try exposed.tensor(type)),
    ]
  }

  /// Single elements of the first result by their row-major positions.
  func samples(at indices: [Int]) throws(ApusError) -> [Double] {
    let count = q.batch * q.heads * q.places * v.width
    var results: [Double] = []
    for index in indices {
      guard index >= 0, index < count else {
        throw ApusError(.invalidArgument, "a sampled position is outside the result")
      }
      let (row, w) = index.quotientAndRemainder(dividingBy: v.width)
      let (outer, inner) = row.quotientAndRemainder(dividingBy: isSideBySide ? q.heads : q.places)
      let (h, p) = isSideBySide ? (inner, outer % q.places) : (outer % q.heads, inner)
      let b = row / (q.heads * q.places)
      var sum = 0.0
      for (j, weight) in try weights(b, h, p).weights.enumerated() where weight != 0 {
        sum += weight * v.values[v.offset(b, h / group, j) + w]
      }
      results.append(sum)
    }
    return results
  }

  /// Query heads that share one of keys and values.
  private var group: Int { q.heads / k.heads }

  /// The weights of all keys for one query, and what is shown of how they came about.
  private func weights(_ b: Int, _ h: Int, _ p: Int) throws(ApusError) -> (
    weights: [Double], exposed: [Double]
  ) {
    var scores = products(b, h, p, h / group, op.scale ?? 1 / Double(q.width).squareRoot())
    var stages = [scores]
    if op.softCap > 0 { scores = scores.map { tanh($0 / op.softCap) * op.softCap } }
    stages.append(scores)
    var isSeen = op.keepsNaN
    for j in scores.indices {
      let bias = try bias(b, h, p, j)
      if bias != -.infinity { isSeen = true }
      scores[j] += bias
    }
    stages.append(scores)
    let weights = isSeen ? softmax(scores) : Array(repeating: 0, count: k.places)
    stages.append(weights)
    return (weights, stages.indices.contains(op.scoreMode) ? stages[op.scoreMode] : weights)
  }

  private func products(_ b: Int, _ h: Int, _ p: Int, _ keyHead: Int, _ scale: Double) -> [Double] {
    let query = q.offset(b, h, p)
    return (0..<k.places).map { j in
      let key = k.offset(b, keyHead, j)
      var sum = 0.0
      for w in 0..<q.width { sum += q.values[query + w] * k.values[key + w] }
      return sum * scale
    }
  }

  /// What is added to the score of key `j`: the mask, and minus infinity where the key is out of sight.
  private func bias(_ b: Int, _ h: Int, _ p: Int, _ j: Int) throws(ApusError) -> Double {
    let place = p + (pastLength ?? validKeys.map { $0[b] - q.places } ?? 0)
    if op.isCausal && j > place { return -.infinity }
    if op.leftWindow >= 0 && place - j > op.leftWindow { return -.infinity }
    if op.rightWindow >= 0 && j - place > op.rightWindow { return -.infinity }
    if let validKeys, j >= validKeys[b] { return -.infinity }
    guard let mask else { return 0 }
    // A mask that is too short hides the keys behind its end.
    guard j < mask.shape.last ?? 1 || mask.shape.last == 1 && k.places == 1 else { return -.infinity }
    var index = 0
    let position = [b, h, p, j].suffix(mask.rank)
    for (size, at) in zip(mask.shape, position) {
      guard size == 1 || at < size else {
        throw ApusError(.typeMismatch, "the mask \(mask.type) does not broadcast to the scores")
      }
      index = index * size + (size == 1 ? 0 : at)
    }
    let value = maskValues[index]
    return mask.dataType == .bool ? (value != 0 ? 0 : -.infinity) : value
  }

  private func softmax(_ scores: [Double]) -> [Double] {
    let top = scores.max() ?? 0
    let powers = scores.map { exp($0 - top) }
    let sum = powers.reduce(0, +)
    return powers.map { $0 / sum }
  }
}
