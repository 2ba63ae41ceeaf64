// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The threshold that loses least information, as it was published for TensorRT (S. Migacz, "8-bit
/// inference with TensorRT", GTC 2017): for every candidate the histogram up to it, with all that lies
/// beyond in its last bin, is compared with its own rounding to a number of levels; the candidate with
/// the smallest Kullback-Leibler divergence wins.
///
/// The rounding joins `size / levels` bins to a level, the rest to the last one, and spreads a level's
/// count evenly over those of its bins that the reference has anything in. A level without a count of
/// its own, which only outliers make part of the reference, stands for `smoothing` numbers.
public enum EntropyThreshold {
  /// Levels of the magnitude of a signed byte.
  public static let levels = 128
  /// What stands for no numbers where a logarithm is taken of them.
  public static let smoothing = 1e-4

  /// The threshold for a histogram of magnitudes.
  ///
  /// - Parameters:
  ///   - bins: Counts, zeros left out.
  ///   - binWidth: The width of a bin, in units of the result.
  /// - Returns: A whole number of bins times the width; 0 for an empty histogram.
  public static func find(_ bins: [UInt64], binWidth: Double, levels: Int = levels) -> Double {
    guard let last = bins.lastIndex(where: { $0 > 0 }), levels > 0 else { return 0 }
    guard last + 1 > levels else { return Double(last + 1) * binWidth }
    let sums = RunningSums(bins.prefix(last + 1).map { Double($0) })
    let divergences = (levels...(last + 1)).map { sums.divergence(of: $0, levels: levels) }
    let least = divergences.min() ?? 0
    // Of candidates that are equal but for rounding the widest: it clips least.
    let best = divergences.lastIndex { $0 <= least + 1e-11 } ?? divergences.count - 1
    return Double(levels + best) * binWidth
  }

  /// Sums over the first bins, so that a candidate costs as much as it has levels.
  struct RunningSums {
    private let counts: [Double]
    private var mass = [0.0]
    private var occupied = [0.0]
    /// Of `count * log(count)`.
    private var entropy = [0.0]

    init(_ counts: [Double]) {
      self.counts = counts
      for count in counts {
        mass.append(mass[mass.count - 1] + count)
        occupied.append(occupied[occupied.count - 1] + (count > 0 ? 1 : 0))
        entropy.append(entropy[entropy.count - 1] + Self.xlogx(count))
      }
    }

    private static func xlogx(_ x: Double) -> Double { x > 0 ? x * log(x) : 0 }

    /// The divergence of the first `size` bins, all beyond in the last one, from their rounding.
    func divergence(of size: Int, levels: Int) -> Double {
      let total = mass[counts.count]
      let inside = mass[size]
      guard inside > 0 else { return .infinity }
      let outliers = total - inside
      let lastBin = counts[size - 1]
      // sum(p log p), p = count / total.
      var result =
        (entropy[size] - Self.xlogx(lastBin) + Self.xlogx(lastBin + outliers)) / total - log(total)
      let joined = size / levels
      for level in 0..<levels {
        let start = level * joined
        let end = level == levels - 1 ? size : start + joined
        let own = mass[end] - mass[start]
        var bins = occupied[end] - occupied[start]
        var reference = own
        if end == size {
          reference += outliers
          if lastBin == 0 && outliers > 0 { bins += 1 }
        }
        guard bins > 0 else { continue }
        // sum(p log q): q is the same for all occupied bins of a level.
        result -= reference / total * log(max(own, smoothing) / bins / inside)
      }
      return result
    }
  }
}
