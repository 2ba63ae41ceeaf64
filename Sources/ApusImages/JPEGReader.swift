// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Reads JPEG files through TurboJPEG, the interface of libjpeg-turbo.
struct JPEGReader: Sendable {
  private typealias Handle = UnsafeMutableRawPointer
  private typealias Create = @convention(c) () -> Handle?
  private typealias Destroy = @convention(c) (Handle?) -> CInt
  private typealias Header = @convention(c) (
    Handle?, UnsafeRawPointer?, CUnsignedLong, UnsafeMutablePointer<CInt>?,
    UnsafeMutablePointer<CInt>?, UnsafeMutablePointer<CInt>?, UnsafeMutablePointer<CInt>?
  ) -> CInt
  private typealias Decode = @convention(c) (
    Handle?, UnsafeRawPointer?, CUnsignedLong, UnsafeMutableRawPointer?, CInt, CInt, CInt, CInt, CInt
  ) -> CInt
  private typealias Text = @convention(c) (Handle?) -> UnsafePointer<CChar>?
  private typealias Number = @convention(c) (Handle?) -> CInt

  private let create: Create
  private let destroy: Destroy
  private let header: Header
  private let decode: Decode
  private let text: Text
  private let severity: Number

  /// The loaded library, or why it is not.
  static let shared = Result<JPEGReader, ApusError> { () throws(ApusError) in try JPEGReader() }

  private init() throws(ApusError) {
    let library = try SharedLibrary(
      "TurboJPEG", package: "libturbojpeg0",
      files: ["libturbojpeg.so.0", "libturbojpeg.so", "libturbojpeg.dylib"])
    create = unsafeBitCast(try library.function("tjInitDecompress"), to: Create.self)
    destroy = unsafeBitCast(try library.function("tjDestroy"), to: Destroy.self)
    header = unsafeBitCast(try library.function("tjDecompressHeader3"), to: Header.self)
    decode = unsafeBitCast(try library.function("tjDecompress2"), to: Decode.self)
    text = unsafeBitCast(try library.function("tjGetErrorStr2"), to: Text.self)
    severity = unsafeBitCast(try library.function("tjGetErrorCode"), to: Number.self)
  }

  // From TurboJPEG's documentation: the pixel format RGB, and the flag for the exact transform.
  private static let rgb: CInt = 0
  private static let exactTransform: CInt = 4096

  /// The pixels of a file.
  ///
  /// - Throws: `malformed-file` for what is no whole JPEG image.
  func read(_ bytes: UnsafeRawBufferPointer) throws(ApusError) -> PixelImage {
    guard let handle = create() else {
      throw ApusError(.resourceLimit, "TurboJPEG cannot be started")
    }
    defer { _ = destroy(handle) }
    var (width, height, sampling, colours) = (CInt(0), CInt(0), CInt(0), CInt(0))
    let size = CUnsignedLong(bytes.count)
    let failed =
      header(handle, bytes.baseAddress, size, &width, &height, &sampling, &colours) != 0
    guard !failed || isBenign(handle), let count = ImageFile.byteCount(Int(width), Int(height), 3)
    else { throw error(handle) }
    var pixels = [UInt8](repeating: 0, count: count)
    let status = pixels.withUnsafeMutableBytes { target in
      decode(
        handle, bytes.baseAddress, size, target.baseAddress, width, 3 * width, height, Self.rgb,
        Self.exactTransform)
    }
    guard status == 0 || isBenign(handle) else { throw error(handle) }
    return PixelImage(width: Int(width), height: Int(height), channels: 3, pixels: pixels)
  }

  private func message(_ handle: UnsafeMutableRawPointer) -> String {
    text(handle).map { String(cString: $0) } ?? ""
  }

  /// Whether the last failure was a warning that leaves the image whole.
  private func isBenign(_ handle: UnsafeMutableRawPointer) -> Bool {
    severity(handle) == 0 && !message(handle).contains("Premature end")
  }

  private func error(_ handle: UnsafeMutableRawPointer) -> ApusError {
    ApusError(.malformedFile, "no JPEG image that can be read: \(message(handle))")
  }
}
