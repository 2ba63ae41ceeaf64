// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Foundation
import Testing

/// Whether the system's libraries for images are there; prints why tests are skipped when not.
private enum Libraries {
  static let hasPNG = has(ImageFile.missingForPNG)
  static let hasJPEG = has(ImageFile.missingForJPEG)

  private static func has(_ missing: ApusError?) -> Bool {
    if let missing { print("skipping tests on images: \(missing.message)") }
    return missing == nil
  }
}

@Suite struct ImageCalibrationTests {
  private func pattern(_ width: Int, _ height: Int, seed: Int = 0) -> PixelImage {
    PixelImage(
      width: width, height: height, channels: 3,
      pixels: (0..<width * height * 3).map { UInt8(($0 * 37 + seed * 11) % 256) })
  }

  // MARK: Pixels

  /// Red of a pattern of 11 x 7 pixels, as Pillow 13 resizes it with `Image.BILINEAR`.
  @Test func resizesAsPillowDoes() {
    let wanted: [(Int, Int, [UInt8])] = [
      (4, 3, [125, 128, 117, 123, 136, 119, 126, 131, 121, 127, 117, 140]),
      (1, 1, [125]),
      (
        5, 7,
        [
          90, 145, 104, 90, 155, 128, 86, 168, 138, 96, 179, 155, 120, 79, 134, 120, 96, 122, 148, 124, 110,
          165, 124, 110, 175, 148, 106, 76, 158, 116, 89, 154, 140, 99, 154,
        ]
      ),
      (
        11, 3,
        [
          114, 115, 171, 81, 137, 157, 103, 123, 69, 180, 90, 94, 175, 120, 141, 86, 122, 158, 103, 124, 129,
          150, 154, 64, 175, 121, 141, 87, 107, 163, 73, 184, 130,
        ]
      ),
    ]
    for (width, height, red) in wanted {
      let image = pattern(11, 7).resized(width: width, height: height)
      #expect(image.width == width && image.height == height)
      let ours = stride(from: 0, to: image.pixels.count, by: 3).map { Int(image.pixels[$0]) }
      let worst = zip(ours, red).map { abs($0 - Int($1)) }.max() ?? 255
      #expect(worst <= 1 && ours.count == red.count, "\(width) x \(height)")
    }
    // Enlarged, beginning and end of the first row.
    let large = pattern(11, 7).resized(width: 17, height: 12)
    #expect([0, 1, 2, 15, 16].map { large.pixels[$0 * 3] } == [0, 52, 124, 154, 86])
    #expect(pattern(11, 7).gray.pixels.prefix(6) == [30, 141, 73, 107, 189, 73])
    #expect(pattern(11, 7).resized(width: 11, height: 7) == pattern(11, 7))
  }

  @Test func stepsOfPreprocessing() throws {
    let image = pattern(11, 7)
    let plain = try ImagePreprocessing("").tensor(of: image)
    #expect(plain.shape == [3, 7, 11] && plain.floats()[1] == Float(image.pixels[3]))
    let steps = try ImagePreprocessing("crop=3x5,bgr,scale=255,mean=0.5:0.25:0,std=0.5:1:2,layout=NHWC")
    let result = try steps.tensor(of: image)
    #expect(result.shape == [5, 3, 3])
    // The centre begins in row 1, column 4; blue comes first.
    let first = image.pixels[(11 + 4) * 3..<(11 + 5) * 3].map { Float($0) / 255 }
    let wanted: [Float] = [(first[2] - 0.5) / 0.5, first[1] - 0.25, first[0] / 2]
    #expect(Array(result.floats().prefix(3)) == wanted)
    #expect(try ImagePreprocessing("gray,resize=14").tensor(of: image).shape == [1, 14, 22])
    #expect(throws: ApusError.self) { try ImagePreprocessing("crop=8").tensor(of: image) }
    for bad in ["blur=3", "crop=0", "crop=1x2x3", "size=x", "mean=1:2", "gray,std=1:2:3", "std=0", "scale=nan", "bgr=1", "resize", "layout=CHW"] {
      let error = #expect(throws: ApusError.self) { try ImagePreprocessing(bad) }
      #expect(error?.code == .invalidArgument)
    }
  }

  // MARK: Files

  @Test(.enabled(if: Libraries.hasPNG)) func readsPNG() throws {
    let image = pattern(13, 9)
    let bytes = PNGMaker.png(image)
    #expect(try ImageFile.read(bytes: bytes) == image)
    for end in [0, 4, 20, 40, bytes.count / 2] {
      #expect(throws: ApusError.self) { try ImageFile.read(bytes: Array(bytes.prefix(end))) }
    }
    // Sizes that no file can have pixels for.
    let huge = PNGMaker.png(image, claiming: (1 << 20, 1 << 20))
    #expect(throws: ApusError.self) { try ImageFile.read(bytes: huge) }
    var generator = SeededGenerator(seed: 1)
    for _ in 0..<300 {
      var damaged = bytes
      damaged[generator.integer(below: damaged.count)] ^= UInt8(1 + generator.integer(below: 255))
      _ = try? ImageFile.read(bytes: damaged)
    }
  }

  @Test(.enabled(if: Libraries.hasJPEG && SharedFolder.isPresent)) func readsJPEG() throws {
    let folder = "\(try #require(SharedFolder.path))/data/imagenet-sample/images"
    guard let name = try? FileIO.names(inFolder: folder).sorted().first(where: ImageFile.isImage) else {
      return print("skipping the test on JPEG files: none in \(folder)")
    }
    let bytes = try FileIO.read("\(folder)/\(name)")
    let image = try ImageFile.read(bytes: bytes)
    #expect(min(image.width, image.height) == 256)
    for end in [2, 100, bytes.count / 2] {
      #expect(throws: ApusError.self) { try ImageFile.read(bytes: Array(bytes.prefix(end))) }
    }
    var generator = SeededGenerator(seed: 1)
    for _ in 0..<50 {
      var damaged = bytes
      for _ in 0..<4 { damaged[generator.integer(below: damaged.count)] = UInt8(generator.integer(below: 256)) }
      _ = try? ImageFile.read(bytes: damaged)
    }
  }

  // MARK: Calibration

  /// A folder with images of 12 x 12 pixels and more.
  private func folder(_ count: Int) throws -> String {
    let path = FileManager.default.temporaryDirectory.path + "/apus-images-\(UInt64.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    for index in 0..<count {
      let bytes = PNGMaker.png(pattern(14 + index % 3, 16, seed: index))
      try FileIO.write(bytes: bytes, to: "\(path)/\(index).png")
    }
    return path
  }

  private func network(batch: Dim) throws -> Graph {
    var b = GraphBuilder("images")
    let x = b.input("x", .float32, [batch, 3, 12, 12])
    let w = b.constant("w", try SmallNetworks.weights([4, 3, 3, 3], seed: 1))
    return try b.finish(outputs: [("y", try b.apply(Relu(), [try b.apply(Conv(), [x, w])]))])
  }

  @Test(.enabled(if: Libraries.hasPNG)) func foldersOfImagesCalibrate() throws {
    let path = try folder(7)
    defer { try? FileManager.default.removeItem(atPath: path) }
    var configuration = BuilderConfiguration()
    configuration.batch = 3
    try configuration.set("calibration", to: path)
    let source = try #require(configuration.calibration)
    let network = try network(batch: .symbol("N"))
    // Nothing says how images become arrays.
    let unsaid = #expect(throws: ApusError.self) { try source.batches(for: network, configuration) }
    #expect(unsaid?.hint?.contains("--preprocess") == true)
    try configuration.set("preprocess", to: "crop=12,scale=255")
    let batches = try source.batches(for: network, configuration)
    #expect(batches.map { $0["x"]!.shape[0] } == [3, 3, 1])
    let image = pattern(15, 16, seed: 4).centre(width: 12, height: 12)!
    let second = try #require(batches[1]["x"]).floats()
    // The second image of the batch: the first pixel, red, then green.
    #expect(second[3 * 144] == Float(image.pixels[0]) / 255)
    #expect(second[4 * 144] == Float(image.pixels[1]) / 255)
    configuration.precision = .int8
    configuration.level = 0
    let engine = try Builder(configuration).build(network)
    #expect(engine.report.calibration?.entries.isEmpty == false)
  }

  @Test(.enabled(if: Libraries.hasPNG)) func imagesThatCannotBeUsedAreNamed() throws {
    let path = try folder(4)
    defer { try? FileManager.default.removeItem(atPath: path) }
    try FileIO.write(text: "no image", to: "\(path)/2b.jpg")
    var configuration = BuilderConfiguration()
    try configuration.set("preprocess", to: "crop=12,scale=255")
    let network = try network(batch: 2)
    let source = CalibrationSource.folder(path)
    let error = #expect(throws: ApusError.self) { try source.batches(for: network, configuration) }
    #expect(error?.code == .malformedFile && error.map { "\($0)" }?.contains("2b.jpg") == true)
    configuration.skipsBadCalibrationFiles = true
    #expect(try source.batches(for: network, configuration).map { $0["x"]!.shape } == [[2, 3, 12, 12], [2, 3, 12, 12]])
    configuration.skipsBadCalibrationFiles = false
    for steps in ["crop=11", "crop=12,layout=NHWC", "crop=12,gray", ""] {
      configuration.preprocessing = try ImagePreprocessing(steps)
      let misfit = #expect(throws: ApusError.self) { try source.batches(for: network, configuration) }
      #expect(misfit.map { "\($0)" }?.contains("0.png") == true, "\(steps)")
    }
  }
}

/// Writes PNG files without compression.
private enum PNGMaker {
  static func png(_ image: PixelImage, claiming size: (Int, Int)? = nil) -> [UInt8] {
    var lines: [UInt8] = []
    for row in 0..<image.height {
      lines.append(0)
      lines += image.pixels[row * image.width * 3..<(row + 1) * image.width * 3]
    }
    let (width, height) = size ?? (image.width, image.height)
    let length = UInt16(lines.count)
    let stored: [UInt8] =
      [0x78, 1, 1, UInt8(length & 255), UInt8(length >> 8), UInt8(~length & 255), UInt8(~length >> 8)]
      + lines + word(adler(lines))
    return [0x89, 0x50, 0x4E, 0x47, 13, 10, 26, 10]
      + chunk("IHDR", word(UInt32(width)) + word(UInt32(height)) + [8, 2, 0, 0, 0])
      + chunk("IDAT", stored) + chunk("IEND", [])
  }

  private static func word(_ value: UInt32) -> [UInt8] {
    [24, 16, 8, 0].map { UInt8(value >> $0 & 255) }
  }

  private static func chunk(_ kind: String, _ bytes: [UInt8]) -> [UInt8] {
    let body = Array(kind.utf8) + bytes
    return word(UInt32(bytes.count)) + body + word(crc(body))
  }

  private static func crc(_ bytes: [UInt8]) -> UInt32 {
    var rest: UInt32 = ~0
    for byte in bytes {
      rest ^= UInt32(byte)
      for _ in 0..<8 { rest = rest >> 1 ^ (rest & 1 == 1 ? 0xEDB8_8320 : 0) }
    }
    return ~rest
  }

  private static func adler(_ bytes: [UInt8]) -> UInt32 {
    var (a, b) = (UInt32(1), UInt32(0))
    for byte in bytes {
      a = (a + UInt32(byte)) % 65521
      b = (b + a) % 65521
    }
    return b << 16 | a
  }
}
