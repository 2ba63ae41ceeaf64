// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Calibration batches that were not set aside, read once more from where they came from.
package struct OtherSamples {
  /// So many are enough to see how close classes are.
  private static let limit = 1024

  let source: CalibrationSource
  let inputs: [Engine.Binding]
  let configuration: BuilderConfiguration
  let allLabels: [Int]?

  package init(
    source: CalibrationSource, inputs: [Engine.Binding], configuration: BuilderConfiguration,
    allLabels: [Int]?
  ) {
    self.source = source
    self.inputs = inputs
    self.configuration = configuration
    self.allLabels = allLabels
  }

  /// Calls `body` with the batches one after the other, up to some number of samples.
  ///
  /// - Returns: The samples' labels, where there are any.
  func forEachBatch(_ body: ([String: Tensor]) throws(ApusError) -> Void) throws(ApusError) -> [Int]? {
    var heldOut = HeldOutSamples()
    var count = 0
    var labels: [Int] = []
    try source.forEachBatch(
      of: inputs, openBatch: configuration.batch ?? 1,
      skipsBadFiles: configuration.skipsBadCalibrationFiles, preprocessing: configuration.preprocessing
    ) { (batch) throws(ApusError) in
      guard !heldOut.take(batch), count < Self.limit else { return }
      count += batch.sampleCount
      if let allLabels {
        let range = batch.firstSample..<batch.firstSample + batch.sampleCount
        labels += range.filter(allLabels.indices.contains).map { allLabels[$0] }
      }
      try body(batch.inputs)
    }
    return allLabels.map { _ in labels }
  }
}
