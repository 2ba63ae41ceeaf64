// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// What an accuracy budget limits.
public enum AccuracyMetric: String, Sendable, CaseIterable {
  /// The drop of top-1 accuracy in points, for networks with one result of a row of scores a sample;
  /// of fifteen answers that change one counts as lost at least.
  case top1
  /// The energy of the error in percent of the energy of the results: 0.1 is a signal-to-noise ratio of
  /// 30 dB.
  case noise
}

/// How much an engine's results differ from those in single precision: energies over the samples set aside,
/// classes over these and some that were calibrated with.
public struct OutputError: Sendable {
  /// Energy of the differences, and of the results themselves.
  public var noise = 0.0
  public var signal = 0.0
  /// For classifiers: the change of each sample's margin, and what else top-1 is estimated from.
  var classes: ClassError?

  /// The energy of the error as a share of that of the results.
  public var relativeNoise: Double { signal > 0 ? noise / signal : noise > 0 ? .infinity : 0 }

  /// The value that a budget is compared with.
  func value(_ metric: AccuracyMetric) -> Double {
    switch metric {
    case .noise: 100 * relativeNoise
    case .top1: classes?.cost ?? 0
    }
  }
}
