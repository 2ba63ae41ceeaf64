// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Calibration batches that are not calibrated with: errors are measured on them.
package struct HeldOutSamples {
  /// One batch of this many is set aside, until there are enough samples.
  static let stride = 3
  static let limit = 64

  private(set) var batches: [[String: Tensor]] = []
  /// The labels of the samples in order; nil without.
  private(set) var labels: [Int]?
  private let allLabels: [Int]?
  private var index = 0
  private var sampleCount = 0

  /// - Parameter labels: A class for each sample of the calibration data, in order.
  init(labels: [Int]? = nil) {
    allLabels = labels
    self.labels = labels == nil ? nil : []
  }

  /// Samples that are all there are.
  package init(batches: [[String: Tensor]]) {
    self.init()
    self.batches = batches
  }

  /// Takes a batch if it is its turn.
  mutating func take(_ batch: CalibrationBatch) -> Bool {
    defer { index += 1 }
    guard index % Self.stride == Self.stride - 1, sampleCount < Self.limit else { return false }
    batches.append(batch.inputs)
    sampleCount += batch.sampleCount
    if let allLabels {
      for sample in batch.firstSample..<batch.firstSample + batch.sampleCount
      where allLabels.indices.contains(sample) {
        labels?.append(allLabels[sample])
      }
    }
    return true
  }

  /// - Throws: `invalid-argument` when there are too few samples, or fewer labels than samples.
  func check() throws(ApusError) {
    guard !batches.isEmpty else {
      throw ApusError(
        .invalidArgument,
        "choosing precisions needs at least \(Self.stride) batches of calibration data: one in "
          + "\(Self.stride) is set aside to measure errors",
        hint: "give more samples")
    }
    if let labels, labels.count != sampleCount {
      throw ApusError(
        .invalidArgument, "there are \(allLabels?.count ?? 0) labels, fewer than samples",
        hint: "give one label for each sample of the calibration data, in its order")
    }
  }
}
