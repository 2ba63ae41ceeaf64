// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension PixelImage {
  /// The image in another size: bilinear, each result pixel from as many pixels as it covers when the
  /// image shrinks. First along rows, then along columns, rounded to bytes in between, as Pillow does.
  package func resized(width newWidth: Int, height newHeight: Int) -> PixelImage {
    var image = self
    if newWidth != width {
      let filter = TriangleFilter(from: width, to: newWidth)
      image = PixelImage(
        width: newWidth, height: height, channels: channels,
        pixels: filter.apply(image.pixels, lines: height, step: channels, lineStride: width * channels))
    }
    guard newHeight != height else { return image }
    let filter = TriangleFilter(from: height, to: newHeight)
    // A column of whole rows: every byte of a row is a channel.
    let row = newWidth * channels
    return PixelImage(
      width: newWidth, height: newHeight, channels: channels,
      pixels: filter.apply(image.pixels, lines: 1, step: row, lineStride: 0))
  }
}

/// A triangle as wide as two pixels of the smaller of both images, sampled for each result pixel; weights
/// are whole numbers of 22 bits, which add up to one but for rounding.
struct TriangleFilter {
  /// The first source pixel of each result pixel, and the weights from there on.
  private var taps: [(first: Int, weights: [Int])] = []

  private static let bits = 22

  init(from size: Int, to newSize: Int) {
    let scale = Double(size) / Double(newSize)
    let support = max(1, scale)
    for index in 0..<newSize {
      let centre = (Double(index) + 0.5) * scale
      let first = max(0, Int(centre - support + 0.5))
      let end = min(size, Int(centre + support + 0.5))
      let heights = (first..<max(first + 1, end)).map { pixel in
        max(0, 1 - abs((Double(pixel) - centre + 0.5) * (1 / support)))
      }
      let sum = heights.reduce(0, +)
      let weights = heights.map { height in
        Int((height / max(sum, .leastNormalMagnitude) * Double(1 << Self.bits)).rounded(.toNearestOrAwayFromZero))
      }
      taps.append((min(first, size - 1), weights))
    }
  }

  /// Filters `lines` lines of pixels of `step` bytes each.
  func apply(_ source: [UInt8], lines: Int, step: Int, lineStride: Int) -> [UInt8] {
    var result = [UInt8](repeating: 0, count: lines * taps.count * step)
    var sums = [Int](repeating: 0, count: step)
    source.withUnsafeBufferPointer { source in
      for line in 0..<lines {
        for (index, tap) in taps.enumerated() {
          for byte in 0..<step { sums[byte] = 1 << (Self.bits - 1) }
          for (offset, weight) in tap.weights.enumerated() {
            let start = line * lineStride + (tap.first + offset) * step
            for byte in 0..<step { sums[byte] += weight * Int(source[start + byte]) }
          }
          let target = (line * taps.count + index) * step
          for byte in 0..<step { result[target + byte] = UInt8(max(0, min(255, sums[byte] >> Self.bits))) }
        }
      }
    }
    return result
  }
}
