// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// The pixels of an image: rows from the top, in each pixel the channels side by side.
package struct PixelImage: Sendable, Equatable {
  package let width: Int
  package let height: Int
  /// 3 for red, green and blue, or 1 for gray.
  package let channels: Int
  /// `height * width * channels` bytes.
  package let pixels: [UInt8]

  /// Wraps pixels.
  package init(width: Int, height: Int, channels: Int, pixels: [UInt8]) {
    precondition(pixels.count == width * height * channels, "as many bytes as the sizes say")
    self.width = width
    self.height = height
    self.channels = channels
    self.pixels = pixels
  }

  /// One channel from three, with the weights of ITU-R 601 in 16 bits.
  package var gray: PixelImage {
    guard channels == 3 else { return self }
    let values = (0..<width * height).map { index -> UInt8 in
      let sum =
        19595 * Int(pixels[3 * index]) + 38470 * Int(pixels[3 * index + 1])
        + 7471 * Int(pixels[3 * index + 2])
      return UInt8((sum + 0x8000) >> 16)
    }
    return PixelImage(width: width, height: height, channels: 1, pixels: values)
  }

  /// The part of the centre of this size; nil where the image is smaller.
  package func centre(width wantedWidth: Int, height wantedHeight: Int) -> PixelImage? {
    guard wantedWidth <= width, wantedHeight <= height else { return nil }
    let left = (width - wantedWidth) / 2
    let top = (height - wantedHeight) / 2
    var part: [UInt8] = []
    part.reserveCapacity(wantedWidth * wantedHeight * channels)
    for row in top..<top + wantedHeight {
      let start = (row * width + left) * channels
      part += pixels[start..<start + wantedWidth * channels]
    }
    return PixelImage(width: wantedWidth, height: wantedHeight, channels: channels, pixels: part)
  }
}
