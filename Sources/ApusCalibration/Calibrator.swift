// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// How the range of a tensor is chosen from what was seen of it.
public enum Calibrator: Hashable, Sendable, CustomStringConvertible {
  /// The threshold with the smallest loss of information (`EntropyThreshold`).
  case entropy
  /// All numbers that were seen.
  case minmax
  /// The magnitude below which this percentage of the numbers lies.
  case percentile(Double)
  /// The threshold with the smallest mean square of the rounding errors.
  case mse

  /// The percentage when none is given.
  public static let usualPercentage = 99.99

  /// Reads `entropy`, `minmax`, `percentile`, `percentile:99.9` or `mse`; nil for anything else.
  public init?(_ text: String) {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    switch (parts.first.map(String.init), parts.count) {
    case ("entropy", 1): self = .entropy
    case ("minmax", 1): self = .minmax
    case ("mse", 1): self = .mse
    case ("percentile", 1): self = .percentile(Self.usualPercentage)
    case ("percentile", 2):
      guard let percentage = Double(parts[1]), percentage > 0, percentage <= 100 else { return nil }
      self = .percentile(percentage)
    default: return nil
    }
  }

  public var description: String {
    switch self {
    case .entropy: "entropy"
    case .minmax: "minmax"
    case .percentile(let percentage): "percentile:\(percentage)"
    case .mse: "mse"
    }
  }

  /// The range of a tensor: the magnitudes up to the threshold, and no more than was seen.
  public func range(of histogram: MagnitudeHistogram) -> ActivationRange {
    let threshold = threshold(of: histogram)
    return ActivationRange(
      lower: min(0, max(histogram.lower, -threshold)), upper: max(0, min(histogram.upper, threshold)))
  }

  /// The magnitude beyond which numbers are clipped; 0 for tensors of zeros.
  public func threshold(of histogram: MagnitudeHistogram) -> Double {
    let largest = histogram.largest
    guard largest > 0 else { return 0 }
    switch self {
    case .minmax: return largest
    case .entropy:
      if histogram.endsInPlateau { return largest }
      return min(largest, EntropyThreshold.find(histogram.bins, binWidth: histogram.binWidth))
    case .percentile(let percentage): return min(largest, Self.percentile(histogram, percentage))
    case .mse: return min(largest, Self.leastSquares(histogram))
    }
  }

  private static func percentile(_ histogram: MagnitudeHistogram, _ percentage: Double) -> Double {
    let wanted = Double(histogram.count) * percentage / 100
    var seen = Double(histogram.zeroCount)
    for (index, count) in histogram.bins.enumerated() {
      seen += Double(count)
      if seen >= wanted { return Double(index + 1) * histogram.binWidth }
    }
    return histogram.largest
  }

  /// Numbers inside are wrong by a twelfth of the squared step on average, numbers beyond by how far
  /// they lie beyond.
  private static func leastSquares(_ histogram: MagnitudeHistogram) -> Double {
    let bins = histogram.bins.map { Double($0) }
    guard let last = bins.lastIndex(where: { $0 > 0 }) else { return 0 }
    let isSigned = histogram.lower < 0
    let steps = isSigned ? 127.5 : 255.0
    // Sums of counts, and of counts times place and squared place, from the end.
    var (beyond, first, second) = (0.0, 0.0, 0.0)
    var best = (error: Double.infinity, bins: last + 1)
    let total = bins.reduce(0, +)
    for candidate in stride(from: last + 1, through: 1, by: -1) {
      if candidate <= last {
        let place = Double(candidate) + 0.5
        beyond += bins[candidate]
        first += bins[candidate] * place
        second += bins[candidate] * place * place
      }
      let edge = Double(candidate)
      let clipped = second - 2 * edge * first + edge * edge * beyond
      let step = edge / steps
      let error = clipped + (total - beyond) * step * step / 12
      if error < best.error { best = (error, candidate) }
    }
    return Double(best.bins) * histogram.binWidth
  }
}
