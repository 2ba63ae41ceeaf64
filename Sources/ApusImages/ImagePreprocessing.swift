// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// What is done to images before a network sees them, in the words of `python3 -m apus.images`.
///
/// The steps, each left out unless given, in this order: `gray` makes one channel, `resize=S` scales the
/// shorter side to S, `size=WxH` scales to exactly that, `crop=S` or `crop=WxH` cuts the centre out,
/// `bgr` turns the channels around, `scale=D` divides by D, `mean=R:G:B` is subtracted, `std=R:G:B` divides,
/// `layout=NHWC` leaves the channels last.
public struct ImagePreprocessing: Hashable, Sendable {
  /// Sizes in pixels.
  struct Size: Hashable, Sendable {
    var width: Int
    var height: Int
  }

  var shorterSide: Int?
  var size: Size?
  var crop: Size?
  var isGray = false
  var isBGR = false
  var scale: Float = 1
  var mean: [Float] = []
  var deviation: [Float] = []
  var isChannelsLast = false

  /// Reads the steps, separated by commas.
  ///
  /// - Throws: `invalid-argument` naming the step that is none.
  public init(_ text: String) throws(ApusError) {
    for step in text.split(separator: ",") {
      let parts = step.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        .map { $0.trimmed }
      guard try set(parts[0], parts.count > 1 ? parts[1] : nil) else {
        throw ApusError(
          .invalidArgument, "'\(step)' is no step of preprocessing",
          hint: "use resize=S, size=WxH, crop=S, scale=D, mean=R:G:B, std=R:G:B, gray, bgr or layout=NHWC, "
            + "for example resize=256,crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225")
      }
    }
    for values in [mean, deviation] where values.count > 1 && values.count != channels {
      throw ApusError(
        .invalidArgument, "mean and std have \(values.count) numbers for \(channels) channels",
        hint: "give one number, or one for each channel: R:G:B")
    }
  }

  /// Sets a step; false when there is none of this name and value.
  private mutating func set(_ name: String, _ value: String?) throws(ApusError) -> Bool {
    switch (name, value) {
    case ("gray", nil): isGray = true
    case ("bgr", nil): isBGR = true
    case ("layout", "NCHW"), ("layout", "NHWC"): isChannelsLast = value == "NHWC"
    case ("resize", let value?):
      guard let side = Self.side(value) else { return false }
      shorterSide = side
    case ("size", let value?):
      guard let wanted = Self.size(value) else { return false }
      size = wanted
    case ("crop", let value?):
      guard let wanted = Self.size(value) else { return false }
      crop = wanted
    case ("scale", let value?):
      guard let divisor = Float(value), divisor.isFinite, divisor != 0 else { return false }
      scale = divisor
    case ("mean", let value?):
      guard let values = Self.numbers(value) else { return false }
      mean = values
    case ("std", let value?):
      guard let values = Self.numbers(value), !values.contains(0) else { return false }
      deviation = values
    default: return false
    }
    return true
  }

  private static func side(_ text: String) -> Int? {
    Int(text).flatMap { (1...65536).contains($0) ? $0 : nil }
  }

  private static func size(_ text: String) -> Size? {
    let sides = text.split(separator: "x", omittingEmptySubsequences: false).map { side(String($0)) }
    guard (1...2).contains(sides.count), let width = sides[0], let height = sides[sides.count - 1] else {
      return nil
    }
    return Size(width: width, height: height)
  }

  private static func numbers(_ text: String) -> [Float]? {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false).map { Float($0) }
    let values = parts.compactMap { $0 }.filter(\.isFinite)
    return values.count == parts.count ? values : nil
  }

  /// The channels of the result.
  private var channels: Int { isGray ? 1 : 3 }

  /// The tensor of an image file, without an axis for the batch.
  ///
  /// - Throws: `file-access`, `malformed-file`; `invalid-argument` for an image smaller than the crop.
  package func tensor(ofFile path: String) throws(ApusError) -> Tensor {
    do throws(ApusError) {
      return try tensor(of: try ImageFile.read(path))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// The tensor of an image.
  package func tensor(of image: PixelImage) throws(ApusError) -> Tensor {
    try numbers(of: try sized(isGray ? image.gray : image))
  }

  private func sized(_ image: PixelImage) throws(ApusError) -> PixelImage {
    var image = image
    if let shorterSide {
      let share = Double(shorterSide) / Double(min(image.width, image.height))
      func side(_ length: Int) -> Int {
        max(1, Int((Double(length) * share).rounded(.toNearestOrEven)))
      }
      guard ImageFile.byteCount(side(image.width), side(image.height), 3) != nil else {
        throw ApusError(.resourceLimit, "an image of \(image.width) x \(image.height) is too long to resize")
      }
      image = image.resized(width: side(image.width), height: side(image.height))
    }
    if let size {
      guard ImageFile.byteCount(size.width, size.height, 3) != nil else {
        throw ApusError(.resourceLimit, "images of \(size.width) x \(size.height) pixels are too large")
      }
      image = image.resized(width: size.width, height: size.height)
    }
    if let crop {
      guard let part = image.centre(width: crop.width, height: crop.height) else {
        throw ApusError(
          .invalidArgument,
          "an image of \(image.width) x \(image.height) is smaller than the crop of \(crop.width) x \(crop.height)",
          hint: "resize first, for example resize=\(max(crop.width, crop.height)),crop=…")
      }
      image = part
    }
    return image
  }

  private func numbers(of image: PixelImage) throws(ApusError) -> Tensor {
    let count = image.width * image.height
    let channels = image.channels
    let shape = isChannelsLast
      ? [image.height, image.width, channels] : [channels, image.height, image.width]
    let result = try Tensor(.float32, shape: shape)
    result.mutableBytes.withMemoryRebound(to: Float.self) { target in
      for channel in 0..<channels {
        let source = isBGR ? channels - 1 - channel : channel
        let mean = self.mean.isEmpty ? 0 : self.mean[channel % self.mean.count]
        let deviation = self.deviation.isEmpty ? 1 : self.deviation[channel % self.deviation.count]
        for pixel in 0..<count {
          let value = (Float(image.pixels[pixel * channels + source]) / scale - mean) / deviation
          target[isChannelsLast ? pixel * channels + channel : channel * count + pixel] = value
        }
      }
    }
    return result
  }
}

extension Substring {
  /// Without spaces at both ends.
  fileprivate var trimmed: String {
    var rest = self
    while rest.first == " " { rest.removeFirst() }
    while rest.last == " " { rest.removeLast() }
    return String(rest)
  }
}
