// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// What an accuracy metric comes to for the error energy that is expected of an engine: a power law through what was
/// measured, since the metric is the energy itself, or goes with its root or (points of accuracy) with either.
package struct BudgetCurve {
  /// Logarithms of expected energies and of measured metrics.
  private var points: [(noise: Double, metric: Double)] = []
  /// Exponents that may be believed of a few points.
  private static let exponents = 0.4...1.2

  /// Nothing measured yet.
  package init() {}

  /// Adds what was measured of an engine. What has no logarithm says nothing.
  package mutating func add(noise: Double, metric: Double) {
    guard noise > 0, metric > 0, noise.isFinite, metric.isFinite else { return }
    points.append((log(noise), log(metric)))
  }

  /// The error energy at which the metric is expected to meet a budget; nil when too little was measured.
  package func noise(at budget: Double) -> Double? {
    guard points.count > 2, budget > 0 else { return nil }
    let count = Double(points.count)
    let noise = points.reduce(0) { $0 + $1.noise } / count
    let metric = points.reduce(0) { $0 + $1.metric } / count
    let xx = points.reduce(0) { $0 + ($1.noise - noise) * ($1.noise - noise) }
    let xy = points.reduce(0) { $0 + ($1.noise - noise) * ($1.metric - metric) }
    guard xx > 0 else { return nil }
    let exponent = min(max(xy / xx, Self.exponents.lowerBound), Self.exponents.upperBound)
    return exp(noise + (log(budget) - metric) / exponent)
  }
}
