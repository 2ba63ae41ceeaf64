// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The phases of a build, in order. A build can stop after any of them (`APUS_STOP_AFTER`), dumps and
/// errors name them.
public enum BuildPhase: String, Sendable, CaseIterable {
  /// As the importer left it.
  case imported
  /// Products of quantised tensors as products of integers.
  case quantized
  /// Types inferred, constants folded, duplicates and dead nodes gone.
  case canonical
  /// Batch normalisation and scaling folded into the weights before them.
  case simplified
  /// Rounding to bytes put where calibration says.
  case calibrated
  /// Products rounded to a narrower type.
  case narrowed
  /// Convolutions and their neighbours in channels-last order.
  case channelsLast = "channels-last"
  /// Pointwise operators merged, epilogues absorbed by their anchors.
  case fused
  /// A tactic chosen for every problem at the tuned shapes.
  case tuned
  /// Constants stored as the chosen kernels read them.
  case packed
}
