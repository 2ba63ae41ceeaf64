// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Runs the body of a C function: success is `APUS_OK`, an error is remembered for this thread.
func status(_ body: () throws(ApusError) -> Void) -> apus_status {
  do {
    try body()
    return apus_status(APUS_OK)
  } catch {
    LastError.remember(error)
    return number(of: error.code)
  }
}

/// The error for a NULL where a pointer is needed.
func missing(_ name: String) -> ApusError {
  ApusError(.invalidArgument, "'\(name)' is NULL")
}

/// The number of an error's kind in `apus.h`.
private func number(of code: ApusError.Code) -> apus_status {
  let number =
    switch code {
    case .internalError: APUS_ERROR_INTERNAL
    case .invalidArgument: APUS_ERROR_INVALID_ARGUMENT
    case .fileAccess: APUS_ERROR_FILE_ACCESS
    case .malformedFile: APUS_ERROR_MALFORMED_FILE
    case .incompatible: APUS_ERROR_INCOMPATIBLE
    case .unsupportedOperator: APUS_ERROR_UNSUPPORTED_OPERATOR
    case .invalidAttribute: APUS_ERROR_INVALID_ATTRIBUTE
    case .invalidGraph: APUS_ERROR_INVALID_GRAPH
    case .typeMismatch: APUS_ERROR_TYPE_MISMATCH
    case .notYetSupported: APUS_ERROR_NOT_YET_SUPPORTED
    case .resourceLimit: APUS_ERROR_RESOURCE_LIMIT
    case .execution: APUS_ERROR_EXECUTION
    case .cancelled: APUS_ERROR_CANCELLED
    default: APUS_ERROR_OTHER
    }
  return apus_status(number)
}

/// The last error of a thread as C strings.
private final class LastError {
  let text: CText
  let code: CText
  let error: ApusError

  private init(_ error: ApusError) {
    self.error = error
    text = CText(error.description)
    code = CText(error.code.name)
  }

  /// The slot of every thread; its content is released when the thread ends.
  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    pthread_key_create(&key) { pointer in
      #if canImport(Darwin)
        Unmanaged<LastError>.fromOpaque(pointer).release()
      #else
        if let pointer { Unmanaged<LastError>.fromOpaque(pointer).release() }
      #endif
    }
    return key
  }()

  static var current: LastError? {
    guard let pointer = pthread_getspecific(key) else { return nil }
    return Unmanaged<LastError>.fromOpaque(pointer).takeUnretainedValue()
  }

  static func remember(_ error: ApusError) {
    let previous = pthread_getspecific(key)
    pthread_setspecific(key, Unmanaged.passRetained(LastError(error)).toOpaque())
    if let previous { Unmanaged<LastError>.fromOpaque(previous).release() }
  }
}

/// This thread's last error.
func lastError() -> ApusError? { LastError.current?.error }

/// What `apus_last_error` returns before anything failed.
private let emptyText = CText("")

@c @implementation
public func apus_last_error() -> UnsafePointer<CChar>? {
  (LastError.current?.text ?? emptyText).pointer
}

@c @implementation
public func apus_last_error_code() -> UnsafePointer<CChar>? {
  (LastError.current?.code ?? emptyText).pointer
}
