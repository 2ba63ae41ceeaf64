// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Runs one inference on a thread of its own, so that an `async` caller's cooperative thread is free
/// meanwhile: kernels may spin and must not occupy the cooperative pool.
///
/// Unchecked: the caller gives the context up until `value` returns, and the thread is joined by the
/// continuation.
final class DetachedWork: @unchecked Sendable {
  private let context: ExecutionContext
  private let inputs: [String: Tensor]
  private var continuation: CheckedContinuation<Result<[String: Tensor], ApusError>, Never>?

  init(context: ExecutionContext, inputs: [String: Tensor]) {
    self.context = context
    self.inputs = inputs
  }

  func value() async throws(ApusError) -> [String: Tensor] {
    let result = await withCheckedContinuation { continuation in
      self.continuation = continuation
      if !start() {
        continuation.resume(
          returning: .failure(ApusError(.resourceLimit, "cannot start a thread")))
      }
    }
    return try result.get()
  }

  private func start() -> Bool {
    let box = Unmanaged.passRetained(self)
    #if canImport(Darwin)
      var thread: pthread_t?
    #else
      var thread = pthread_t()
    #endif
    let status = pthread_create(&thread, nil, { raw in
      #if canImport(Darwin)
        let work = Unmanaged<DetachedWork>.fromOpaque(raw).takeRetainedValue()
      #else
        let work = Unmanaged<DetachedWork>.fromOpaque(raw!).takeRetainedValue()
      #endif
      work.run()
      return nil
    }, box.toOpaque())
    guard status == 0 else {
      box.release()
      return false
    }
    #if canImport(Darwin)
      pthread_detach(thread!)
    #else
      pthread_detach(thread)
    #endif
    return true
  }

  private func run() {
    let result: Result<[String: Tensor], ApusError>
    do throws(ApusError) {
      result = .success(try context.run(inputs))
    } catch {
      result = .failure(error)
    }
    continuation?.resume(returning: result)
  }
}
