// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusImages
import ApusOptimize

/// What a build is asked for.
public struct BuilderConfiguration: Sendable {
  /// The element type that kernels compute with.
  public enum Precision: String, Sendable, CaseIterable {
    case fp32, bf16, fp16, int8, int4, auto
  }

  /// The sizes an input may take: the tuner measures at `optimum`.
  public struct ShapeRange: Sendable, Hashable {
    public var minimum: [Int]
    public var optimum: [Int]
    public var maximum: [Int]

    /// Creates a range.
    public init(minimum: [Int], optimum: [Int], maximum: [Int]) {
      self.minimum = minimum
      self.optimum = optimum
      self.maximum = maximum
    }
  }

  /// The device: `auto`, `cpu` or `cuda[:N]`.
  public var device = "auto"
  /// Precision of the kernels.
  public var precision = Precision.fp32
  /// CPU threads one inference may use; 0 for all cores.
  public var threadCount = 0
  /// The size that the leading symbolic dimension of every input is tuned for; nil for 1.
  public var batch: Int?
  /// Sizes by input name.
  public var shapes: [String: ShapeRange] = [:]
  /// How much tuning: 0 the first tactic that works, 1 and 2 a few measured, 3 measured (default),
  /// 4 and 5 more configurations.
  public var level = 3
  /// Seconds after which tuning keeps the best found so far; nil for no limit.
  public var timeBudgetSeconds: Double?
  /// Bytes of workspace a kernel may use; nil for no limit.
  public var workspaceLimit: Int?
  /// A timing cache file to start from and to add to.
  public var timingCachePath: String?
  /// Samples for int8, of what the network will see.
  public var calibration: CalibrationSource?
  /// What is done to images among them; without it there can be none.
  public var preprocessing: ImagePreprocessing?
  /// How ranges are chosen from them; nil for `entropy`, or for whatever a cache was made by.
  public var chosenCalibrator: Calibrator?
  /// A file with the ranges: used when it exists, else written.
  public var calibrationCachePath: String?
  /// Ranges that were found already; they go before data and cache.
  public var calibrationTable: CalibrationTable?
  /// Whether the ranges of tensors to blame for most of the error are searched again by what they do to the results,
  /// which takes a build and some dozen inferences for each of them, several times.
  public var refinesRanges = false
  /// Whether calibration files that cannot be used are left out with a warning.
  public var skipsBadCalibrationFiles = false
  /// What precision `auto` may cost, in units of `accuracyMetric`.
  public var accuracyBudget = 0.1
  /// What the budget limits; nil for `top1` where the network is a classifier, else `noise`.
  public var accuracyMetric: AccuracyMetric?
  /// A `.npy` file with the class of each sample of the calibration data, in order.
  public var labelsPath: String?
  /// What is done to weights and biases when they become int8.
  public var quantization = QuantizationOptions()
  /// Rows of a column of int4 weights that share a scale: 32, 64 or 128.
  public var int4Group = 32
  /// The precision of single layers by the names of their nodes; the others take `precision`.
  public var layerPrecisions: [String: Precision] = [:]
  /// Runs the network by the reference interpreter: no pass, no kernel.
  public var isReference = false

  /// The default configuration.
  public init() {}

  /// The calibrator for new calibrations.
  public var calibrator: Calibrator { chosenCalibrator ?? .entropy }
}

/// What a long build reports.
public struct BuildProgress: Sendable {
  /// The phase in progress.
  public var phase: String
  /// Problems tuned so far and in all.
  public var done: Int
  public var total: Int
  /// Tactics timed so far.
  public var timed: Int
  /// Seconds since the build began, and an estimate of those left.
  public var elapsedSeconds: Double
  public var remainingSeconds: Double?
}

/// Receives progress; returning false cancels the build, which keeps the best found so far.
public typealias ProgressHandler = @Sendable (BuildProgress) -> Bool
