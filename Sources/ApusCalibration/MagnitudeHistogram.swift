// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// How often magnitudes occur in a tensor, over any number of batches.
///
/// Bins are a power of two wide, and pairs of them are joined when a larger number arrives. Counts
/// therefore do not depend on the order or the grouping of the batches. Zeros are counted apart: after a
/// rectifier they are most of a tensor and would hide the rest.
public struct MagnitudeHistogram: Sendable, Hashable {
  /// The number of bins.
  public static let binCount = 2048

  /// How many magnitudes lie in `[index * binWidth, (index + 1) * binWidth)`, zeros left out.
  public private(set) var bins = [UInt64](repeating: 0, count: binCount)
  /// The base-two logarithm of the width of a bin; nil before the first number that is not zero.
  public private(set) var exponent: Int?
  /// The smallest and the largest number.
  public private(set) var lower = Double.infinity
  public private(set) var upper = -Double.infinity
  /// How many zeros, and how many numbers that are none or infinite; those are nowhere else.
  public private(set) var zeroCount: UInt64 = 0
  public private(set) var brokenCount: UInt64 = 0

  /// An empty histogram.
  public init() {}

  init(bins: [UInt64], exponent: Int?, lower: Double, upper: Double, zeroCount: UInt64) {
    self.bins = bins
    self.exponent = exponent
    self.lower = lower
    self.upper = upper
    self.zeroCount = zeroCount
  }

  /// The width of a bin; 0 before the first number that is not zero.
  public var binWidth: Double { exponent.map { Self.power($0) } ?? 0 }

  /// How many finite numbers were added.
  public var count: UInt64 { bins.reduce(zeroCount, +) }

  /// The largest magnitude.
  public var largest: Double { count == 0 ? 0 : max(abs(lower), abs(upper)) }

  /// Whether the largest magnitude is a limit that the network itself sets, as `min(x, 6)` does: what
  /// lies there are no outliers.
  public var endsInPlateau: Bool {
    guard let last = bins.lastIndex(where: { $0 > 0 }), last >= 16 else { return false }
    let before = bins[(last - 16)..<last].reduce(0, +)
    let isLarge = bins[last] * 1000 >= count - zeroCount
    return isLarge && bins[last] > before
  }

  /// Adds numbers.
  public mutating func add(_ values: UnsafeBufferPointer<Float>) {
    var (low, high) = (Float.infinity, -Float.infinity)
    var broken: UInt64 = 0
    for value in values {
      if !value.isFinite {
        broken += 1
        continue
      }
      if value < low { low = value }
      if value > high { high = value }
    }
    brokenCount += broken
    guard low <= high else { return }
    lower = min(lower, Double(low))
    upper = max(upper, Double(high))
    cover(Double(max(abs(low), abs(high))))
    count(values, areFinite: broken == 0)
  }

  private mutating func count(_ values: UnsafeBufferPointer<Float>, areFinite: Bool) {
    // A power of two: the product is exact, or rounds to zero bins only what lies in the first.
    let scale = exponent.map { Float(Self.power(-$0)) } ?? 0
    var zeros: UInt64 = 0
    bins.withUnsafeMutableBufferPointer { bins in
      for value in values where areFinite || value.isFinite {
        if value == 0 {
          zeros += 1
        } else {
          bins[min(Self.binCount - 1, Int(abs(value) * scale))] += 1
        }
      }
    }
    zeroCount += zeros
  }

  /// Adds what another histogram counted.
  public mutating func merge(_ other: MagnitudeHistogram) {
    zeroCount += other.zeroCount
    brokenCount += other.brokenCount
    lower = min(lower, other.lower)
    upper = max(upper, other.upper)
    guard let theirs = other.exponent else { return }
    var other = other
    let common = max(exponent ?? theirs, theirs)
    if exponent == nil { exponent = theirs }
    widen(to: common)
    other.widen(to: common)
    for index in bins.indices { bins[index] += other.bins[index] }
  }

  /// Makes the bins wide enough for a magnitude.
  private mutating func cover(_ magnitude: Double) {
    guard magnitude > 0 else { return }
    // The smallest power of two with which the magnitude lies inside the last bin.
    var needed = max(magnitude.exponent.toInt - 11, -126)
    while magnitude >= Self.power(needed) * Double(Self.binCount) { needed += 1 }
    if exponent == nil { exponent = needed }
    widen(to: needed)
  }

  private mutating func widen(to wanted: Int) {
    guard var now = exponent else { return }
    while now < wanted {
      for index in 0..<Self.binCount / 2 { bins[index] = bins[2 * index] + bins[2 * index + 1] }
      for index in Self.binCount / 2..<Self.binCount { bins[index] = 0 }
      now += 1
    }
    exponent = now
  }

  private static func power(_ exponent: Int) -> Double {
    Double(sign: .plus, exponent: exponent, significand: 1)
  }
}

extension Double.Exponent {
  fileprivate var toInt: Int { Int(self) }
}
