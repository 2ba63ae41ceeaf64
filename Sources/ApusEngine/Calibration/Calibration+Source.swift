// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusTensor

extension Calibration {
  /// Seconds of work after which the state is saved again.
  private static let savingInterval = 5.0

  /// Adds everything a source has.
  ///
  /// - Parameters:
  ///   - openBatch: The batch where the network leaves it open.
  ///   - skipsBadFiles: Whether a file that cannot be used is left out with a warning.
  ///   - statePath: Where to keep the state now and then, and to go on from; removed at the end.
  ///   - progress: Called after each batch; returning false stops.
  /// - Throws: `file-access`, `malformed-file` or `invalid-argument` with the file; `cancelled`.
  public func add(
    contentsOf source: CalibrationSource, openBatch: Int = 1, skipsBadFiles: Bool = false,
    statePath: String? = nil, progress: ProgressHandler? = nil
  ) throws(ApusError) {
    if case .random(let count) = source { return try addRandom(count, openBatch) }
    var keeper = StateKeeper(path: statePath, interval: Self.savingInterval)
    let known = keeper.restore(self)
    var passed = 0
    var skipped = 0
    let reader = CalibrationBatches(inputs: inputs, openBatch: openBatch)
    let files = try source.files()
    let start = Clock.seconds
    for (number, file) in files.enumerated() {
      let state = skipsBadFiles ? (watched, operands, seen, batchCount, sampleCount) : nil
      do {
        let arrays = file.hasSuffix(".npz")
          ? try NumPy.readArchive(path: file) : [("", try NumPy.readArray(path: file))]
        let batches = try reader.batches(of: arrays)
        for (index, batch) in batches.enumerated() {
          if let known, passed < known.batchCount {
            passed += 1
            try pass(batch, known, passed)
            continue
          }
          try add(batch)
          try keeper.save(self)
          let done = files.count == 1 ? index + 1 : number
          let total = files.count == 1 ? batches.count : files.count
          try report(progress, done, total, start)
        }
      } catch {
        guard let state, error.code != .cancelled else { throw error.at(GraphLocation(file: file)) }
        (watched, operands, seen, batchCount, sampleCount) = state
        skipped += 1
        Log.warning("calibration data left out: \(error.at(GraphLocation(file: file)).message) (\(file))")
      }
    }
    if skipped > 0 { Log.warning("\(skipped) of \(files.count) calibration files were left out") }
    keeper.remove()
  }

  /// Counts a batch that a restored state has seen already.
  private func pass(_ batch: [String: Tensor], _ known: Progress, _ passed: Int) throws(ApusError) {
    for name in batch.keys.sorted() { if let tensor = batch[name] { seen.update(tensor.bytes) } }
    guard passed == known.batchCount else { return }
    guard seen.value == known.seen else {
      throw ApusError(
        .invalidArgument, "the interrupted calibration was made with other data",
        hint: "delete the state file beside the cache to begin anew")
    }
    batchCount = known.batchCount
    sampleCount = known.sampleCount
  }

  private func report(_ progress: ProgressHandler?, _ done: Int, _ total: Int, _ start: Double)
    throws(ApusError)
  {
    guard let progress else { return }
    let spent = Clock.seconds - start
    let goesOn = progress(
      BuildProgress(
        phase: "calibration", done: done, total: total, timed: 0, elapsedSeconds: spent,
        remainingSeconds: done > 0 ? spent / Double(done) * Double(total - done) : nil))
    if !goesOn { throw ApusError(.cancelled, "the calibration was cancelled") }
  }

  private func addRandom(_ count: Int, _ openBatch: Int) throws(ApusError) {
    var generator = SeededGenerator(seed: 42)
    while sampleCount < count {
      var batch: [String: Tensor] = [:]
      for input in inputs {
        guard let type = input.type.tensor, let dims = type.dims else { continue }
        let shape = dims.enumerated().map { $1.value ?? ($0 == 0 ? openBatch : 1) }
        batch[input.name] = try generator.sample(type.dataType, shape: shape)
      }
      try add(batch)
      if batch.isEmpty { break }
    }
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
    guard let path, Clock.seconds - saved > interval else { return }
    try FileIO.write(text: calibration.stateText, to: path)
    saved = Clock.seconds
  }

  /// What an earlier calibration left; nil when there is none, or it is of another network.
  func restore(_ calibration: Calibration) -> Calibration.Progress? {
    guard let path, FileIO.exists(path), let bytes = try? FileIO.read(path) else { return nil }
    let progress = calibration.restore(String(decoding: bytes, as: UTF8.self))
    if let progress {
      Log.info("calibration goes on after \(progress.sampleCount) samples")
    } else {
      Log.warning("the interrupted calibration in '\(path)' is of another network or damaged and is not used")
    }
    return progress
  }

  func remove() { if let path { FileIO.remove(path) } }
}
