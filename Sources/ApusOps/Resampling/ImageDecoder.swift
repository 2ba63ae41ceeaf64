// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The pixels in the bytes of an image file (ONNX `ImageDecoder`), `[height, width, channels]`.
///
/// BMP files without compression and PNM files (P5, P6) are read; compressed formats are refused with
/// the advice to decode them before the model.
public struct ImageDecoder: DataDependentShape {
  public static let name = "ImageDecoder"

  /// The order of the channels.
  public enum PixelFormat: String, Sendable, Hashable, CaseIterable {
    case rgb = "RGB"
    case bgr = "BGR"
    case grayscale = "Grayscale"
  }

  public var format: PixelFormat

  /// Creates the operator.
  public init(format: PixelFormat = .rgb) { self.format = format }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    format = try attributes.choice("format", PixelFormat.rgb)
  }

  public var attributes: Attributes { ["format": .string(format.rawValue)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType == .uint8, x.rank ?? 1 == 1 else {
      throw ApusError(.typeMismatch, "a file is a vector of bytes, not \(x)")
    }
    let channels = format == .grayscale ? 1 : 3
    return [typed(.uint8, [inputs.freshDim("height"), inputs.freshDim("width"), Dim(channels)])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let bytes = Array(try inputs.required(0).bytes)
    let image: Image
    if bytes.starts(with: [0x42, 0x4D]) {
      image = try Image(bmp: bytes)
    } else if bytes.starts(with: [0x50, 0x36]) || bytes.starts(with: [0x50, 0x35]) {
      image = try Image(pnm: bytes)
    } else {
      throw ApusError(
        .notYetSupported, "the image is neither BMP nor PNM",
        hint: "decode compressed images before the model, and pass their pixels")
    }
    var result: [Int64] = []
    for pixel in image.pixels {
      switch format {
      case .rgb: result += pixel.map { Int64($0) }
      case .bgr: result += pixel.reversed().map { Int64($0) }
      case .grayscale:
        let sum = 0.299 * Double(pixel[0]) + 0.587 * Double(pixel[1]) + 0.114 * Double(pixel[2])
        result.append(Int64(sum.rounded()))
      }
    }
    let channels = format == .grayscale ? 1 : 3
    return [.tensor(try Tensor(result, .uint8, shape: [image.height, image.width, channels]))]
  }
}

/// Pixels as red, green and blue.
private struct Image {
  var width: Int
  var height: Int
  var pixels: [[UInt8]] = []

  private static func damaged(_ what: String) -> ApusError {
    ApusError(.execution, "the image is damaged: \(what)")
  }

  private static func check(_ width: Int, _ height: Int) throws(ApusError) {
    guard width > 0, height > 0, width < 1 << 16, height < 1 << 16 else {
      throw damaged("\(width) x \(height) pixels")
    }
  }

  init(bmp bytes: [UInt8]) throws(ApusError) {
    guard bytes.count >= 54 else { throw Self.damaged("no header") }
    func number(_ at: Int, _ count: Int) -> Int {
      (0..<count).reduce(0) { $0 | Int(bytes[at + $1]) << (8 * $1) }
    }
    let start = number(10, 4)
    width = number(18, 4)
    let lines = Int(Int32(truncatingIfNeeded: number(22, 4)))
    height = abs(lines)
    let bits = number(28, 2)
    try Self.check(width, height)
    guard number(30, 4) == 0, bits == 24 || bits == 32 else {
      throw ApusError(.notYetSupported, "a BMP image with \(bits) bits a pixel, or compressed")
    }
    let step = (width * bits / 8 + 3) / 4 * 4
    guard start >= 54, start <= bytes.count, bytes.count - start >= step * height else {
      throw Self.damaged("it ends early")
    }
    for row in 0..<height {
      // Positive heights count from the bottom.
      let line = start + (lines > 0 ? height - 1 - row : row) * step
      for column in 0..<width {
        let at = line + column * bits / 8
        pixels.append([bytes[at + 2], bytes[at + 1], bytes[at]])
      }
    }
  }

  init(pnm bytes: [UInt8]) throws(ApusError) {
    var at = 2
    var numbers: [Int] = []
    while numbers.count < 3, at < bytes.count {
      if bytes[at] == 0x23 {
        while at < bytes.count, bytes[at] != 0x0A { at += 1 }
      } else if bytes[at] >= 0x30, bytes[at] <= 0x39 {
        var value = 0
        while at < bytes.count, bytes[at] >= 0x30, bytes[at] <= 0x39, value < 1 << 20 {
          value = value * 10 + Int(bytes[at] - 0x30)
          at += 1
        }
        numbers.append(value)
      } else {
        at += 1
      }
    }
    guard numbers.count == 3, numbers[2] == 255 else { throw Self.damaged("no header of 8-bit pixels") }
    (width, height) = (numbers[0], numbers[1])
    try Self.check(width, height)
    let channels = bytes[1] == 0x36 ? 3 : 1
    at += 1
    guard at <= bytes.count, bytes.count - at >= width * height * channels else {
      throw Self.damaged("it ends early")
    }
    for pixel in 0..<(width * height) {
      let place = at + pixel * channels
      pixels.append(
        channels == 3
          ? Array(bytes[place..<(place + 3)]) : Array(repeating: bytes[place], count: 3))
    }
  }
}
