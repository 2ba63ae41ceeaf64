// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// A handle for C that owns one reference to an object.
func handle(_ object: some AnyObject) -> OpaquePointer {
  OpaquePointer(Unmanaged.passRetained(object).toOpaque())
}

/// The object behind a handle.
func object<Object: AnyObject>(
  _ handle: OpaquePointer?, _ type: Object.Type = Object.self, named name: String
) throws(ApusError) -> Object {
  guard let handle else { throw missing(name) }
  return Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
}

/// Gives up the reference of a handle; nothing for NULL.
func release<Object: AnyObject>(_ handle: OpaquePointer?, _ type: Object.Type) {
  guard let handle else { return }
  Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).release()
}

/// A C string as Swift text.
func text(_ pointer: UnsafePointer<CChar>?, named name: String) throws(ApusError) -> String {
  guard let pointer else { throw missing(name) }
  return String(cString: pointer)
}

/// Bytes with a stable address and a zero byte behind them; immutable.
final class CText: @unchecked Sendable {
  private let storage: UnsafeMutableBufferPointer<CChar>

  /// Copies text.
  convenience init(_ text: String) {
    var text = text
    self.init(text.withUTF8 { Array($0) })
  }

  /// Copies bytes.
  init(_ bytes: [UInt8]) {
    storage = .allocate(capacity: bytes.count + 1)
    for (index, byte) in bytes.enumerated() { storage[index] = CChar(bitPattern: byte) }
    storage[bytes.count] = 0
  }

  /// The first byte.
  var pointer: UnsafePointer<CChar> { UnsafePointer(storage.baseAddress!) }

  /// The number of bytes, the zero byte not counted.
  var byteCount: Int { storage.count - 1 }

  deinit { storage.deallocate() }
}

@c @implementation
public func apus_report_data(_ report: OpaquePointer?) -> UnsafePointer<CChar>? {
  (try? object(report, CText.self, named: "report"))?.pointer
}

@c @implementation
public func apus_report_size(_ report: OpaquePointer?) -> Int {
  (try? object(report, CText.self, named: "report"))?.byteCount ?? 0
}

@c @implementation
public func apus_report_destroy(_ report: OpaquePointer?) {
  release(report, CText.self)
}
