// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusImages
import ApusTensor

/// Reads images one by one and puts them together to batches; no more than one batch is in memory.
struct ImageBatches {
  /// The network's inputs, of which there must be one.
  let inputs: [Engine.Binding]
  /// The batch where the network leaves it open.
  let openBatch: Int
  let preprocessing: ImagePreprocessing
  let skipsBadFiles: Bool

  /// Calls `body` with each batch.
  ///
  /// - Throws: `invalid-argument` for a network of several inputs, and naming the file for images that
  ///   do not fit it; `file-access`, `malformed-file`.
  func forEach(
    _ files: [String], _ body: (CalibrationBatch) throws(ApusError) -> Void
  ) throws(ApusError) {
    guard inputs.count == 1, let input = inputs.first else {
      throw ApusError(
        .invalidArgument, "images are data for networks of one input, this one has \(inputs.count)",
        hint: "give .npz files with an array for each input")
    }
    let length = batchLength(input)
    var samples = 0
    var skipped = 0
    var gathered: [Tensor] = []
    for (number, file) in files.enumerated() {
      do throws(ApusError) {
        gathered.append(try image(file, for: input, like: gathered.first))
      } catch {
        guard skipsBadFiles else { throw error.at(GraphLocation(file: file)) }
        skipped += 1
        Log.warning("calibration data left out: \(error.message) (\(file))")
      }
      guard gathered.count == length || number == files.count - 1, !gathered.isEmpty else { continue }
      let batches = try reader.batches(of: [(input.name, try Self.joined(gathered))])
      gathered = []
      for inputs in batches {
        let batch = CalibrationBatch(
          inputs: inputs, firstSample: samples, done: number + 1, total: files.count)
        try body(batch)
        samples += batch.sampleCount
      }
    }
    if skipped > 0 { Log.warning("\(skipped) of \(files.count) calibration files were left out") }
  }

  private var reader: CalibrationBatches { CalibrationBatches(inputs: inputs, openBatch: openBatch) }

  /// How many images a batch has: one where the network has no axis for it.
  private func batchLength(_ input: Engine.Binding) -> Int {
    guard let dims = input.type.tensor?.dims, dims.count == 4 else { return 1 }
    return max(1, dims[0].value ?? openBatch)
  }

  /// The tensor of an image, if it fits the network and the other images of its batch.
  private func image(_ file: String, for input: Engine.Binding, like other: Tensor?) throws(ApusError)
    -> Tensor
  {
    let tensor = try preprocessing.tensor(ofFile: file)
    guard let type = input.type.tensor, let dims = type.dims else { return tensor }
    let fits = zip(dims.suffix(3), tensor.shape).allSatisfy { $0.value == nil || $0.value == $1 }
    guard type.dataType == .float32, (3...4).contains(dims.count), fits else {
      throw ApusError(
        .invalidArgument,
        "an image of shape \(tensor.shape), as --preprocess makes it, does not fit input '\(input.name)': \(type)",
        hint: "give crop=S or size=WxH, and layout=NHWC where the network wants the channels last")
    }
    guard other.map({ $0.shape == tensor.shape }) ?? true else {
      throw ApusError(
        .invalidArgument, "the images differ in size: \(tensor.shape) after \(other?.shape ?? [])",
        hint: "give crop=S or size=WxH with --preprocess")
    }
    return tensor
  }

  /// Images of one shape side by side along a new first axis.
  private static func joined(_ images: [Tensor]) throws(ApusError) -> Tensor {
    guard let first = images.first else { return try Tensor(.float32, shape: [0]) }
    let result = try Tensor(first.dataType, shape: [images.count] + first.shape)
    for (index, image) in images.enumerated() {
      let part = index * first.byteCount..<(index + 1) * first.byteCount
      UnsafeMutableRawBufferPointer(rebasing: result.mutableBytes[part]).copyMemory(from: image.bytes)
    }
    return result
  }
}
