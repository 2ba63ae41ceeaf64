// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusImages
import ApusTensor

/// One batch of calibration data.
struct CalibrationBatch {
  let inputs: [String: Tensor]
  /// The number of samples before it.
  let firstSample: Int
  /// How far the source is read: files done of all, or batches where there is one file.
  let done: Int
  let total: Int

  var sampleCount: Int { Calibration.samples(in: inputs) }
}

extension CalibrationSource {
  /// All batches for a network.
  ///
  /// - Throws: `file-access`, `malformed-file` or `invalid-argument` with the file.
  public func batches(for network: Graph, _ configuration: BuilderConfiguration)
    throws(ApusError) -> [[String: Tensor]]
  {
    let inputs = Engine.Binding.inputs(of: network)
    var result: [[String: Tensor]] = []
    try forEachBatch(
      of: inputs, openBatch: configuration.batch ?? 1,
      skipsBadFiles: configuration.skipsBadCalibrationFiles, preprocessing: configuration.preprocessing
    ) { (batch) throws(ApusError) in result.append(batch.inputs) }
    return result
  }

  /// Calls `body` with each batch in order.
  ///
  /// - Parameters:
  ///   - openBatch: The batch where the network leaves it open.
  ///   - skipsBadFiles: Whether a file that cannot be used is left out with a warning.
  ///   - preprocessing: What is done to images.
  /// - Throws: `file-access`, `malformed-file` or `invalid-argument` with the file; what `body` throws.
  func forEachBatch(
    of inputs: [Engine.Binding], openBatch: Int, skipsBadFiles: Bool,
    preprocessing: ImagePreprocessing? = nil,
    _ body: (CalibrationBatch) throws(ApusError) -> Void
  ) throws(ApusError) {
    if case .random(let count) = self { return try random(count, inputs, openBatch, body) }
    let reader = CalibrationBatches(inputs: inputs, openBatch: openBatch)
    let files = try files(images: preprocessing != nil)
    if let preprocessing, files.allSatisfy(ImageFile.isImage), !files.isEmpty {
      let images = ImageBatches(
        inputs: inputs, openBatch: openBatch, preprocessing: preprocessing, skipsBadFiles: skipsBadFiles)
      return try images.forEach(files, body)
    }
    var samples = 0
    var skipped = 0
    for (number, file) in files.enumerated() {
      let batches: [[String: Tensor]]
      do {
        batches = try reader.batches(inFile: file)
      } catch {
        guard skipsBadFiles else { throw error.at(GraphLocation(file: file)) }
        skipped += 1
        Log.warning("calibration data left out: \(error.message) (\(file))")
        continue
      }
      for (index, inputs) in batches.enumerated() {
        let isOne = files.count == 1
        let batch = CalibrationBatch(
          inputs: inputs, firstSample: samples, done: isOne ? index + 1 : number + 1,
          total: isOne ? batches.count : files.count)
        do {
          try body(batch)
        } catch {
          throw error.at(GraphLocation(file: file))
        }
        samples += batch.sampleCount
      }
    }
    if skipped > 0 { Log.warning("\(skipped) of \(files.count) calibration files were left out") }
  }

  private func random(
    _ count: Int, _ inputs: [Engine.Binding], _ openBatch: Int,
    _ body: (CalibrationBatch) throws(ApusError) -> Void
  ) throws(ApusError) {
    var generator = SeededGenerator(seed: 42)
    var samples = 0
    while samples < count {
      var values: [String: Tensor] = [:]
      for input in inputs {
        guard let type = input.type.tensor, let dims = type.dims else { continue }
        let shape = dims.enumerated().map { $1.value ?? ($0 == 0 ? openBatch : 1) }
        values[input.name] = try generator.sample(type.dataType, shape: shape)
      }
      let batch = CalibrationBatch(
        inputs: values, firstSample: samples, done: min(count, samples + openBatch), total: count)
      try body(batch)
      samples += max(1, batch.sampleCount)
    }
  }
}

extension CalibrationBatches {
  /// What a file holds, cut into batches whose numbers are all finite.
  func batches(inFile path: String) throws(ApusError) -> [[String: Tensor]] {
    let arrays = path.hasSuffix(".npz")
      ? try NumPy.readArchive(path: path) : [("", try NumPy.readArray(path: path))]
    let batches = try batches(of: arrays)
    for batch in batches { try Self.check(batch) }
    return batches
  }

  /// - Throws: `invalid-argument` for inputs that are empty or hold what is not a finite number.
  static func check(_ batch: [String: Tensor]) throws(ApusError) {
    for (name, tensor) in batch.sorted(by: { $0.key < $1.key }) {
      guard tensor.count > 0 else {
        throw ApusError(
          .invalidArgument, "the calibration data for input '\(name)' is empty: \(tensor.type)")
      }
      let broken = tensor.brokenCount
      guard broken == 0 else {
        throw ApusError(
          .invalidArgument,
          "the calibration data for input '\(name)' has \(broken) elements that are NaN or infinite")
      }
    }
  }
}

extension Tensor {
  /// How many numbers of single precision are NaN or infinite.
  var brokenCount: Int {
    guard dataType == .float32 else { return 0 }
    return withElements(of: Float.self) { values in
      var broken = 0
      for value in values where !value.isFinite { broken &+= 1 }
      return broken
    }
  }
}
