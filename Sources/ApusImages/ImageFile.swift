// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Image files: JPEG and PNG, which libraries of the system decode.
package enum ImageFile {
  /// The endings of names that are taken for images.
  package static let suffixes = [".jpg", ".jpeg", ".png"]

  /// Whether a name has the ending of an image.
  package static func isImage(_ name: String) -> Bool {
    suffixes.contains { name.lowercased().hasSuffix($0) }
  }

  /// Why JPEG files, or PNG files, cannot be read on this system; nil when they can.
  package static var missingForJPEG: ApusError? { failure(JPEGReader.shared) }
  package static var missingForPNG: ApusError? { failure(PNGReader.shared) }

  private static func failure<Success>(_ result: Result<Success, ApusError>) -> ApusError? {
    if case .failure(let error) = result { error } else { nil }
  }

  /// The pixels of a file, red, green and blue; what the file begins with decides what it is.
  ///
  /// - Throws: `file-access`, also when the library for it is not installed; `malformed-file`.
  package static func read(_ path: String) throws(ApusError) -> PixelImage {
    do throws(ApusError) {
      return try read(bytes: try FileIO.read(path))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// The pixels in the bytes of a file.
  package static func read(bytes: [UInt8]) throws(ApusError) -> PixelImage {
    let result: Result<PixelImage, ApusError> = bytes.withUnsafeBytes { bytes in
      Result { () throws(ApusError) in
        if bytes.starts(with: [0xFF, 0xD8]) { return try JPEGReader.shared.get().read(bytes) }
        if bytes.starts(with: [0x89, 0x50, 0x4E, 0x47]) { return try PNGReader.shared.get().read(bytes) }
        throw ApusError(.malformedFile, "neither a JPEG nor a PNG image")
      }
    }
    return try result.get()
  }

  /// Images of more pixels are refused: a few bytes of a file can claim any size.
  private static let pixelLimit = 1 << 27

  /// The bytes of an image; nil for sizes that are not positive or too large.
  static func byteCount(_ width: Int, _ height: Int, _ channels: Int) -> Int? {
    guard (1...pixelLimit).contains(width), (1...pixelLimit).contains(height),
      height <= pixelLimit / width
    else { return nil }
    return width * height * channels
  }
}
