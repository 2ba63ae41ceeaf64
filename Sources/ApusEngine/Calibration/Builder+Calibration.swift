// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusTensor

extension Builder {
  /// The ranges for a network: those of the configuration, of its cache, or found from its data, which
  /// the cache then keeps. Nil when there is none of them.
  ///
  /// - Throws: `invalid-argument` when a cache is of another network or calibrator; what `Calibration`
  ///   throws.
  func calibrationTable(for network: Graph) throws(ApusError) -> CalibrationTable? {
    if let known = try knownTable(for: network) { return known }
    guard let source = configuration.calibration else { return nil }
    return try newTable(for: network, from: source) { _ in true }
  }

  /// As `calibrationTable(for:)`, with some batches set aside that are not calibrated with.
  func calibrationTable(
    for network: Graph, from source: CalibrationSource, settingAside samples: inout HeldOutSamples
  ) throws(ApusError) -> CalibrationTable {
    if let known = try knownTable(for: network) {
      let inputs = Engine.Binding.inputs(of: network)
      try source.forEachBatch(
        of: inputs, openBatch: configuration.batch ?? 1,
        skipsBadFiles: configuration.skipsBadCalibrationFiles,
        preprocessing: configuration.preprocessing
      ) { (batch) throws(ApusError) in _ = samples.take(batch) }
      return known
    }
    return try newTable(for: network, from: source) { !samples.take($0) }
  }

  /// The table of the configuration or of its cache.
  private func knownTable(for network: Graph) throws(ApusError) -> CalibrationTable? {
    if let table = configuration.calibrationTable {
      try check(table, try ModelHash.of(network), "the calibration")
      return table
    }
    guard let path = configuration.calibrationCachePath,
      let table = try CalibrationTable.load(path)
    else { return nil }
    do {
      try check(table, try ModelHash.of(network), "the calibration cache")
    } catch {
      throw error.at(GraphLocation(file: path))
    }
    return table
  }

  private func newTable(
    for network: Graph, from source: CalibrationSource,
    where isWanted: (CalibrationBatch) -> Bool
  ) throws(ApusError) -> CalibrationTable {
    let path = configuration.calibrationCachePath
    let calibration = try Calibration(network, configuration)
    try calibration.add(
      contentsOf: source, openBatch: configuration.batch ?? 1,
      skipsBadFiles: configuration.skipsBadCalibrationFiles,
      preprocessing: configuration.preprocessing,
      statePath: path.map { "\($0).partial" }, progress: progress, where: isWanted)
    var table = try calibration.finish()
    if case .random = source {
      table.isRandom = true
      Log.warning("calibrated with random numbers: measure speed with this engine, nothing else")
    }
    if let path { try table.save(path) }
    return table
  }

  private func check(_ table: CalibrationTable, _ hash: UInt64, _ what: String) throws(ApusError) {
    guard table.modelHash == hash else {
      throw ApusError(
        .invalidArgument, "\(what) is of another model",
        hint: "name another cache file, or delete this one to calibrate again")
    }
    if let wanted = configuration.chosenCalibrator, wanted != table.calibrator {
      throw ApusError(
        .invalidArgument,
        "\(what) was made by calibrator '\(table.calibrator)', and '\(wanted)' is asked for",
        hint: "name another cache file, or delete this one to calibrate again")
    }
  }
}
