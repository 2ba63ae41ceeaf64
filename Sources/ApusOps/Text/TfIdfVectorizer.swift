// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// How often known sequences of items occur in a row (ONNX `TfIdfVectorizer`): items are texts or
/// integers, a sequence's items may have others between them.
public struct TfIdfVectorizer: Operator {
  public static let name = "TfIdfVectorizer"

  /// What becomes of a count.
  public enum Mode: String, Sendable, Hashable { case TF, IDF, TFIDF }

  public var mode: Mode
  public var minimumLength: Int
  public var maximumLength: Int
  /// The most items left out between two of a sequence.
  public var maximumSkip: Int
  /// Where in `pool` the sequences of one item start, of two, ...
  public var counts: [Int]
  /// The result's element for each sequence of the pool.
  public var indexes: [Int]
  /// The sequences' items, one after the other; integers as texts.
  public var pool: [String]
  /// A factor for each sequence; empty for 1.
  public var weights: [Double]

  /// Creates the operator.
  public init(
    mode: Mode, minimumLength: Int, maximumLength: Int, maximumSkip: Int, counts: [Int],
    indexes: [Int], pool: [String], weights: [Double] = []
  ) {
    self.mode = mode
    self.minimumLength = minimumLength
    self.maximumLength = maximumLength
    self.maximumSkip = maximumSkip
    self.counts = counts
    self.indexes = indexes
    self.pool = pool
    self.weights = weights
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    let word = try attributes.string("mode")
    guard let mode = Mode(rawValue: word) else {
      throw ApusError(.invalidAttribute, "'mode' is '\(word)', not TF, IDF or TFIDF")
    }
    self.mode = mode
    minimumLength = try attributes.int("minimum_length")
    maximumLength = try attributes.int("maximum_length")
    maximumSkip = try attributes.int("maximum_skip")
    counts = try attributes.ints("counts")
    indexes = try attributes.ints("indexes")
    pool = try attributes.strings("pool")
    weights = try attributes.floats("weights", [])
  }

  public var attributes: Attributes {
    [
      "mode": .string(mode.rawValue), "minimum_length": .int(minimumLength),
      "maximum_length": .int(maximumLength), "maximum_skip": .int(maximumSkip),
      "counts": .ints(counts), "indexes": .ints(indexes), "pool": .strings(pool),
      "weights": .floats(weights),
    ]
  }

  /// The number of results for a row.
  private func resultCount() throws(ApusError) -> Int {
    let largest = indexes.max() ?? -1
    guard indexes.allSatisfy({ $0 >= 0 }), largest < 1 << 31,
      weights.isEmpty || weights.count == indexes.count
    else {
      throw ApusError(.invalidAttribute, "the indexes or weights of the sequences do not fit")
    }
    return largest + 1
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType == .string || x.dataType.isInteger else {
      throw ApusError(.typeMismatch, "items are \(x), expected texts or integers")
    }
    let count = try resultCount()
    guard let dims = x.dims else { return [typed(.float32, nil)] }
    guard dims.count == 1 || dims.count == 2 else {
      throw ApusError(.typeMismatch, "items are \(x), expected one row or several")
    }
    return [typed(.float32, dims.dropLast() + [Dim(count)])]
  }

  /// The sequences of each length with their numbers.
  private func sequences() throws(ApusError) -> [[String]: Int] {
    var known: [[String]: Int] = [:]
    var number = 0
    for (length, start) in counts.enumerated() {
      let end = length + 1 < counts.count ? counts[length + 1] : pool.count
      guard start >= 0, start <= end, end <= pool.count, (end - start) % (length + 1) == 0 else {
        throw ApusError(.invalidAttribute, "the counts \(counts) do not divide the pool")
      }
      for place in stride(from: start, to: end, by: length + 1) {
        guard number < indexes.count else {
          throw ApusError(.invalidAttribute, "there are more sequences than indexes")
        }
        known[Array(pool[place..<(place + length + 1)])] = number
        number += 1
      }
    }
    return known
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let items = x.dataType == .string ? x.strings : x.ints().map(String.init)
    let known = try sequences()
    let width = try resultCount()
    let length = x.shape.last ?? 0
    let rows = x.rank == 2 ? x.shape[0] : 1
    var result = [Double](repeating: 0, count: try Tensor.checkedCount([rows, width]))
    for row in 0..<rows {
      let part = Array(items[(row * length)..<((row + 1) * length)])
      for (number, count) in occurrences(part, known) {
        let weight = weights.isEmpty ? 1 : weights[number]
        result[row * width + indexes[number]] =
          switch mode {
          case .TF: Double(count)
          case .IDF: weight
          case .TFIDF: Double(count) * weight
          }
      }
    }
    return [.tensor(try Tensor(result, .float32, shape: x.shape.dropLast() + [width]))]
  }

  private func occurrences(_ items: [String], _ known: [[String]: Int]) -> [Int: Int] {
    var found: [Int: Int] = [:]
    for length in stride(from: max(1, minimumLength), through: min(maximumLength, items.count), by: 1) {
      // With one item there is nothing to leave out.
      for skip in 0...(length == 1 ? 0 : max(0, min(maximumSkip, items.count))) {
        let step = skip + 1
        guard (length - 1) * step < items.count else { break }
        for start in 0..<(items.count - (length - 1) * step) {
          let sequence = (0..<length).map { items[start + $0 * step] }
          if let number = known[sequence] { found[number, default: 0] += 1 }
        }
      }
    }
    return found
  }
}
