// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Where calibration samples come from, as `--calibration` names it.
public enum CalibrationSource: Hashable, Sendable {
  /// A `.npz` file with an array for each input, or a `.npy` file for a network of one input.
  case file(String)
  /// A folder of such files, in the order of their names.
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
  /// - Throws: `file-access`; `invalid-argument` for a folder without arrays, which names what to do
  ///   about images.
  func files() throws(ApusError) -> [String] {
    switch self {
    case .random: return []
    case .file(let path): return [path]
    case .folder(let folder):
      let names = try FileIO.names(inFolder: folder).sorted()
      let arrays = names.filter { $0.hasSuffix(".npz") || $0.hasSuffix(".npy") }
      if !arrays.isEmpty { return arrays.map { "\(folder)/\($0)" } }
      let images = names.filter { name in
        [".jpg", ".jpeg", ".png"].contains { name.lowercased().hasSuffix($0) }
      }
      throw ApusError(
        .invalidArgument,
        images.isEmpty
          ? "the folder '\(folder)' has no calibration data"
          : "the folder '\(folder)' has \(images.count) images, which must become arrays first",
        hint: images.isEmpty
          ? "put .npz or .npy files there"
          : "python3 -m apus.images \(folder) calibration.npz --preprocess resize=256,crop=224,…")
    }
  }
}
