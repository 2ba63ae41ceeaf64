// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusImages
import ApusTensor

/// Where calibration samples come from, as `--calibration` names it.
public enum CalibrationSource: Hashable, Sendable {
  /// A `.npz` file with an array for each input, or a `.npy` file for a network of one input.
  case file(String)
  /// A folder of such files, or of images, in the order of their names.
  case folder(String)
  /// Random numbers, for measurements of speed only.
  case random(Int)

  /// Reads `FILE.npz`, `FILE.npy`, `FOLDER` or `random:N`.
  ///
  /// - Throws: `invalid-argument` for anything else.
  public init(_ text: String) throws(ApusError) {
    if text.hasPrefix("random:") {
      guard let count = Int(text.dropFirst(7)), (1...1_000_000).contains(count) else {
        throw ApusError(
          .invalidArgument, "'\(text)' does not say how many samples",
          hint: "write random:N with N from 1 to 1000000")
      }
      self = .random(count)
    } else if text.hasSuffix(".npz") || text.hasSuffix(".npy") {
      self = .file(text)
    } else if FileIO.isFolder(text) {
      self = .folder(text)
    } else {
      throw ApusError(
        .invalidArgument, "'\(text)' is no calibration data",
        hint: "give a .npz or .npy file, a folder of them, or random:N")
    }
  }

  /// The files, in order.
  ///
  /// - Parameter images: Whether images serve, too, in a folder without arrays.
  /// - Throws: `file-access`; `invalid-argument` for a folder without data, which names what to do
  ///   about images.
  func files(images takesImages: Bool = false) throws(ApusError) -> [String] {
    switch self {
    case .random: return []
    case .file(let path): return [path]
    case .folder(let folder):
      let names = try FileIO.names(inFolder: folder).sorted()
      let arrays = names.filter { $0.hasSuffix(".npz") || $0.hasSuffix(".npy") }
      if !arrays.isEmpty { return arrays.map { "\(folder)/\($0)" } }
      let images = names.filter(ImageFile.isImage)
      if takesImages && !images.isEmpty { return images.map { "\(folder)/\($0)" } }
      throw ApusError(
        .invalidArgument,
        images.isEmpty
          ? "the folder '\(folder)' has no calibration data"
          : "the folder '\(folder)' has \(images.count) images, and nothing says how they become arrays",
        hint: images.isEmpty
          ? "put .npz or .npy files or images there"
          : "say what the network was trained with, for example --preprocess "
            + "resize=256,crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225")
    }
  }
}
