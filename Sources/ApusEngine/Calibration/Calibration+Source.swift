// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusImages
import ApusTensor

extension Calibration {
  /// Seconds of work after which the state is saved again.
  private static let savingInterval = 5.0

  /// Adds everything a source has.
  ///
  /// - Parameters:
  ///   - openBatch: The batch where the network leaves it open.
  ///   - skipsBadFiles: Whether a file that cannot be used is left out with a warning.
  ///   - preprocessing: What is done to images; without it there can be none.
  ///   - statePath: Where to keep the state now and then, and to go on from; removed at the end.
  ///   - progress: Called after each batch; returning false stops.
  /// - Throws: `file-access`, `malformed-file` or `invalid-argument` with the file; `cancelled`.
  public func add(
    contentsOf source: CalibrationSource, openBatch: Int = 1, skipsBadFiles: Bool = false,
    preprocessing: ImagePreprocessing? = nil, statePath: String? = nil,
    progress: ProgressHandler? = nil
  ) throws(ApusError) {
    try add(
      contentsOf: source, openBatch: openBatch, skipsBadFiles: skipsBadFiles,
      preprocessing: preprocessing, statePath: statePath, progress: progress, where: { _ in true })
  }

  /// Adds the batches for which `isWanted` is true.
  func add(
    contentsOf source: CalibrationSource, openBatch: Int, skipsBadFiles: Bool,
    preprocessing: ImagePreprocessing?, statePath: String?, progress: ProgressHandler?, where isWanted: (CalibrationBatch) -> Bool
  ) throws(ApusError) {
    var keeper = StateKeeper(path: statePath, interval: Self.savingInterval)
    let known = try keeper.restore(self)
    var passed = 0
    let start = Clock.seconds
    try source.forEachBatch(
      of: inputs, openBatch: openBatch, skipsBadFiles: skipsBadFiles, preprocessing: preprocessing
    ) { (batch) throws(ApusError) in
      guard isWanted(batch) else { return }
      if let known, passed < known.batchCount {
        passed += 1
        try pass(batch.inputs, known, isLast: passed == known.batchCount)
        return
      }
      try add(batch.inputs)
      try keeper.save(self)
      guard report(progress, batch, start) else {
        let isSaved = try keeper.saveNow(self)
        throw ApusError(
          .cancelled, "the calibration was cancelled after \(sampleCount) samples",
          hint: isSaved ? "started again it goes on from there" : nil)
      }
    }
    keeper.remove()
  }

  /// Checks a batch that a restored state has seen already.
  private func pass(_ batch: [String: Tensor], _ known: Progress, isLast: Bool) throws(ApusError) {
    for name in batch.keys.sorted() { if let tensor = batch[name] { seen.update(tensor.bytes) } }
    guard isLast else { return }
    guard seen.value == known.seen else {
      throw ApusError(
        .invalidArgument, "the interrupted calibration was made with other data",
        hint: "delete the file that ends in .partial beside the cache to begin anew")
    }
    batchCount = known.batchCount
    sampleCount = known.sampleCount
  }

  /// Whether it is to go on.
  private func report(_ progress: ProgressHandler?, _ batch: CalibrationBatch, _ start: Double) -> Bool {
    guard let progress else { return true }
    let spent = Clock.seconds - start
    let rest = spent / Double(batch.done) * Double(batch.total - batch.done)
    return progress(
      BuildProgress(
        phase: "calibration", done: batch.done, total: batch.total, timed: 0, elapsedSeconds: spent,
        remainingSeconds: rest))
  }
}

/// Saves a calibration's state from time to time.
private struct StateKeeper {
  let path: String?
  let interval: Double
  private var saved = Clock.seconds

  init(path: String?, interval: Double) {
    self.path = path
    self.interval = interval
  }

  mutating func save(_ calibration: Calibration) throws(ApusError) {
    if Clock.seconds - saved > interval { _ = try saveNow(calibration) }
  }

  /// Whether there is a state and a place for it.
  mutating func saveNow(_ calibration: Calibration) throws(ApusError) -> Bool {
    guard let path, let text = calibration.stateText else { return false }
    try FileIO.write(text: text, to: path)
    saved = Clock.seconds
    return true
  }

  /// What an earlier calibration left; nil when there is none, or it is of another network.
  func restore(_ calibration: Calibration) throws(ApusError) -> Calibration.Progress? {
    guard let path, FileIO.exists(path), let bytes = try? FileIO.read(path) else { return nil }
    let progress = try calibration.restore(String(decoding: bytes, as: UTF8.self))
    if let progress {
      Log.info("calibration goes on after \(progress.sampleCount) samples")
    } else {
      Log.warning(
        "the interrupted calibration in '\(path)' is of another network or damaged and is not used")
    }
    return progress
  }

  func remove() { if let path { FileIO.remove(path) } }
}
