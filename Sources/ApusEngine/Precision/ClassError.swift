// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// What rounding does to a classifier.
///
/// Some hundred samples cannot resolve a tenth of a point by counting: one sample is a point. What they
/// do resolve is how much the margin between the two best classes moves. A sample whose margin `m` is
/// small against that noise of deviation `s` changes its class with probability `Phi(-m / s)`, and then
/// loses `p1 - p2` of a hit on average, if the network's confidence is right. Confidence is made right by
/// one temperature where labels are given (C. Guo et al., "On calibration of modern neural networks",
/// 2017).
struct ClassError: Sendable {
  /// By sample, how far the best class in single precision is above each of the next ones: in single precision
  /// and as rounded.
  var margins: [[(exact: Double, rounded: Double)]] = []
  /// Samples in single precision: how far apart the two best classes are, and what a sample loses when it
  /// changes its class. These may be more than rounding was measured on.
  var population: [(margin: Double, loss: Double)] = []
  /// How many samples have the same best class.
  var agreeing = 0
  /// How many samples are right in single precision and as rounded; nil without labels.
  var hits: (exact: Int, rounded: Int)?

  /// Changed answers that a lost point may come with. Gains and losses nearly cancel where samples are
  /// hard; a budget that counted their difference alone would let many answers change unseen.
  static let changesForALostPoint = 15.0

  /// Points of top-1 accuracy that rounding costs: the expected drop, or the share of answers that the
  /// changed ones stand for, whichever is more.
  var cost: Double { max(expectedDrop, expectedChanges / Self.changesForALostPoint) }

  /// Points of top-1 accuracy that are lost on average.
  var expectedDrop: Double { percentage { $0.change * $0.loss } }

  /// Percent of the samples whose class changes on average.
  var expectedChanges: Double { percentage { $0.change } }

  private func percentage(_ share: ((change: Double, loss: Double)) -> Double) -> Double {
    let deviation = deviation
    guard !population.isEmpty, deviation > 0 else { return 0 }
    let sum = evened.reduce(0.0) { sum, sample in
      let change = 0.5 * erfc(sample.margin / deviation / 2.0.squareRoot())
      return sum + sample.weight * share((change, sample.loss))
    }
    return 100 * sum / Double(population.count)
  }

  /// The samples, the third with the smallest margins spread evenly down to zero: whether one of some
  /// dozens happens to have a margin of nearly nothing must not decide.
  private var evened: [(margin: Double, loss: Double, weight: Double)] {
    let sorted = population.sorted { $0.margin < $1.margin }
    let few = sorted.count / 3
    guard few > 0, sorted[few].margin > 0 else { return sorted.map { ($0.margin, $0.loss, 1) } }
    let edge = sorted[few]
    let points = 256
    let spread = (0..<points).map { index in
      let place = (Double(index) + 0.5) / Double(points)
      return (edge.margin * place, edge.loss * place, Double(few) / Double(points))
    }
    return spread + sorted.dropFirst(few).map { ($0.margin, $0.loss, 1) }
  }

  /// The deviation of the margins' changes, without what only scales all margins.
  ///
  /// How many samples change their class depends on the mean size of the changes, and a few samples with large
  /// ones (a range that they alone leave) would dominate their mean square: so the deviation is that of a normal
  /// distribution with the same mean size. It is taken of the half with the smaller margins: where the network
  /// is sure, numbers are larger and their errors, too, but no class changes. Margins above several classes
  /// say more than those above the second alone: a search that looks at dozens of engines would else find the
  /// one that seems good by chance.
  var deviation: Double {
    var (xx, xy) = (0.0, 0.0)
    for margin in margins.joined() {
      xx += margin.exact * margin.exact
      xy += margin.exact * (margin.rounded - margin.exact)
    }
    let slope = xx > 0 ? xy / xx : 0
    let close = margins.sorted { ($0.first?.exact ?? 0) < ($1.first?.exact ?? 0) }
      .prefix((margins.count + 1) / 2).joined()
    let sum = close.reduce(0.0) { $0 + abs($1.rounded - $1.exact - slope * $1.exact) }
    // One degree of freedom went to the slope.
    let degrees = Double(max(1, margins.count)) / Double(max(1, margins.count - 1))
    return sum / Double(max(1, close.count)) * degrees.squareRoot() * (Double.pi / 2).squareRoot()
  }

  /// Whether results look like a row of scores for each sample.
  static func isClassifier(shape: [Int]) -> Bool {
    shape.count >= 2 && shape[1] >= 2 && shape.dropFirst(2).allSatisfy { $0 == 1 }
  }
}

/// The scores of samples in single precision: what others are compared with.
struct ClassScores: Sendable {
  private let rows: [[Double]]
  /// The best classes of each sample, the best first.
  private let best: [[Int]]
  private static let rivals = 8
  private let population: [(margin: Double, loss: Double)]
  private let labels: [Int]?

  /// - Parameters:
  ///   - rows: Scores by sample, or probabilities.
  ///   - labels: The right classes, where known.
  ///   - others: More samples in single precision, with their classes: rounding is not measured on them, but
  ///     they show how close classes are, which a few dozen samples hardly do.
  init(_ rows: [[Double]], labels: [Int]?, others: [[Double]] = [], otherLabels: [Int]? = nil) {
    self.rows = rows.map(Self.logarithms)
    self.labels = labels
    best = self.rows.map { Self.best($0, 1 + Self.rivals) }
    let all = self.rows + others.map(Self.logarithms)
    let known = others.isEmpty ? labels : labels.flatMap { labels in otherLabels.map { labels + $0 } }
    let temperature = known.map { Self.temperature(all, $0) } ?? 1
    population = all.map { row in
      let first = Self.best(row, 2)
      let (_, total) = Self.softmaxTerms(row, temperature)
      let (top, margin) = (1 / total, row[first[0]] - row[first[1]])
      return (margin, top - top * exp(-margin / temperature))
    }
  }

  /// Compares with the scores of an engine.
  func compare(_ other: [[Double]]) -> ClassError {
    var result = ClassError()
    result.population = population
    var hits = (exact: 0, rounded: 0)
    for (index, row) in other.map(Self.logarithms).enumerated() where index < rows.count {
      let first = best[index][0]
      let exact = rows[index]
      result.margins.append(
        best[index].dropFirst().map { (exact[first] - exact[$0], row[first] - row[$0]) })
      let answer = Self.best(row, 1)[0]
      if answer == first { result.agreeing += 1 }
      if let labels {
        if first == labels[index] { hits.exact += 1 }
        if answer == labels[index] { hits.rounded += 1 }
      }
    }
    if labels != nil { result.hits = hits }
    return result
  }

  /// Probabilities become scores; scores stay.
  private static func logarithms(_ row: [Double]) -> [Double] {
    let isProbability = row.allSatisfy { $0 >= 0 && $0 <= 1 } && abs(row.reduce(0, +) - 1) < 1e-3
    return isProbability ? row.map { log(max($0, 1e-12)) } : row
  }

  /// The classes with the largest scores, the best first; never more than there are.
  private static func best(_ row: [Double], _ count: Int) -> [Int] {
    var result: [Int] = []
    for index in row.indices {
      if result.count == count, let last = result.last, !(row[index] > row[last]) { continue }
      let place = result.firstIndex { row[index] > row[$0] } ?? result.count
      result.insert(index, at: place)
      if result.count > count { result.removeLast() }
    }
    return result
  }

  /// The largest score and the sum of exponentials below it.
  private static func softmaxTerms(_ row: [Double], _ temperature: Double) -> (Double, Double) {
    let top = row.max() ?? 0
    return (top, row.reduce(0) { $0 + exp(($1 - top) / temperature) })
  }

  /// The temperature with the smallest mean negative log-likelihood of the labels.
  private static func temperature(_ rows: [[Double]], _ labels: [Int]) -> Double {
    var best = (loss: Double.infinity, temperature: 1.0)
    for step in -20...30 {
      let temperature = pow(1.2, Double(step))
      var loss = 0.0
      for (row, label) in zip(rows, labels) where row.indices.contains(label) {
        let (top, total) = softmaxTerms(row, temperature)
        loss += log(total) - (row[label] - top) / temperature
      }
      if loss < best.loss { best = (loss, temperature) }
    }
    return best.temperature
  }
}
