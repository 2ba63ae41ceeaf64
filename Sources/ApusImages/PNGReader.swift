// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Reads PNG files through the simplified interface of libpng 1.6.
struct PNGReader: Sendable {
  private typealias Begin = @convention(c) (
    UnsafeMutableRawPointer?, UnsafeRawPointer?, Int
  ) -> CInt
  private typealias Finish = @convention(c) (
    UnsafeMutableRawPointer?, UnsafeRawPointer?, UnsafeMutableRawPointer?, Int32,
    UnsafeMutableRawPointer?
  ) -> CInt
  private typealias Free = @convention(c) (UnsafeMutableRawPointer?) -> Void

  private let begin: Begin
  private let finish: Finish
  private let free: Free

  /// The loaded library, or why it is not.
  static let shared = Result<PNGReader, ApusError> { () throws(ApusError) in try PNGReader() }

  private init() throws(ApusError) {
    let library = try SharedLibrary(
      "libpng", package: "libpng16-16",
      files: ["libpng16.so.16", "libpng16.so", "libpng16.dylib", "libpng.dylib"])
    begin = unsafeBitCast(try library.function("png_image_begin_read_from_memory"), to: Begin.self)
    finish = unsafeBitCast(try library.function("png_image_finish_read"), to: Finish.self)
    free = unsafeBitCast(try library.function("png_image_free"), to: Free.self)
  }

  /// Byte offsets in libpng's description of an image, as its manual gives the members: a pointer, seven
  /// 32-bit numbers and a text.
  private enum Field {
    static let version = MemoryLayout<Int>.size
    static let width = version + 4
    static let height = version + 8
    static let format = version + 12
    static let flags = version + 16
    static let text = version + 28
    static let textCount = 64
    static let byteCount = (text + textCount + 7) & ~7
  }

  // From libpng's manual: the version of the description, the format of four bytes a pixel with opacity
  // last, and the flag that 16-bit numbers are meant as 8-bit ones are.
  private static let version: UInt32 = 1
  private static let rgba: UInt32 = 3
  private static let sixteenBitsAsUsual: UInt32 = 4

  /// The pixels of a file; opacity is left out.
  ///
  /// - Throws: `malformed-file` for what is no whole PNG image.
  func read(_ bytes: UnsafeRawBufferPointer) throws(ApusError) -> PixelImage {
    let image = UnsafeMutableRawPointer.allocate(byteCount: Field.byteCount, alignment: 8)
    defer { image.deallocate() }
    image.initializeMemory(as: UInt8.self, repeating: 0, count: Field.byteCount)
    image.storeBytes(of: Self.version, toByteOffset: Field.version, as: UInt32.self)
    defer { free(image) }
    guard begin(image, bytes.baseAddress, bytes.count) != 0 else { throw error(image) }
    let width = Int(image.load(fromByteOffset: Field.width, as: UInt32.self))
    let height = Int(image.load(fromByteOffset: Field.height, as: UInt32.self))
    image.storeBytes(of: Self.rgba, toByteOffset: Field.format, as: UInt32.self)
    image.storeBytes(of: Self.sixteenBitsAsUsual, toByteOffset: Field.flags, as: UInt32.self)
    guard let count = ImageFile.byteCount(width, height, 4) else {
      throw ApusError(.resourceLimit, "an image of \(width) x \(height) pixels is too large")
    }
    var pixels = [UInt8](repeating: 0, count: count)
    let status = pixels.withUnsafeMutableBytes { finish(image, nil, $0.baseAddress, 0, nil) }
    guard status != 0 else { throw error(image) }
    var colours: [UInt8] = []
    colours.reserveCapacity(count / 4 * 3)
    for start in stride(from: 0, to: count, by: 4) { colours += pixels[start..<start + 3] }
    return PixelImage(width: width, height: height, channels: 3, pixels: colours)
  }

  private func error(_ image: UnsafeMutableRawPointer) -> ApusError {
    let text = UnsafeRawBufferPointer(start: image + Field.text, count: Field.textCount).prefix { $0 != 0 }
    return ApusError(
      .malformedFile, "no PNG image that can be read: \(String(decoding: text, as: UTF8.self))")
  }
}
