// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusTensor

extension CalibrationTable {
  /// The ranges of a network for samples that arrive over time.
  ///
  /// - Parameters:
  ///   - network: As it was imported.
  ///   - batches: Tensors by input name; what is kept of them does not grow with their number.
  /// - Throws: what the sequence throws, and `ApusError` as `Calibration` does.
  public static func calibrating<Batches: AsyncSequence>(
    _ network: Graph, _ configuration: BuilderConfiguration = BuilderConfiguration(),
    with batches: Batches
  ) async throws -> CalibrationTable where Batches.Element == [String: Tensor] {
    let calibration = try Calibration(network, configuration)
    for try await batch in batches { try calibration.add(batch) }
    return try calibration.finish()
  }
}
