// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Runs several contexts of one engine at once, each on a thread of its own.
final class StreamRunner: Sendable {
  private let engine: Engine
  private let inputs: [String: Tensor]
  private let seconds: Double
  private let streams: Int
  private let results = Mutex<[Result<[Double], ApusError>]>([])

  init(engine: Engine, inputs: [String: Tensor], seconds: Double, streams: Int) {
    self.engine = engine
    self.inputs = inputs
    self.seconds = seconds
    self.streams = streams
  }

  func run() throws(ApusError) -> (latencies: [Double], wall: Double) {
    let start = Clock.seconds
    var threads: [pthread_t] = []
    for _ in 0..<streams {
      let box = Unmanaged.passRetained(self)
      #if canImport(Darwin)
        var thread: pthread_t?
        let status = pthread_create(&thread, nil, { raw in
          Unmanaged<StreamRunner>.fromOpaque(raw).takeRetainedValue().work()
          return nil
        }, box.toOpaque())
        if status == 0, let thread { threads.append(thread) } else { box.release() }
      #else
        var thread = pthread_t()
        let status = pthread_create(&thread, nil, { raw in
          Unmanaged<StreamRunner>.fromOpaque(raw!).takeRetainedValue().work()
          return nil
        }, box.toOpaque())
        if status == 0 { threads.append(thread) } else { box.release() }
      #endif
    }
    for thread in threads { pthread_join(thread, nil) }
    var latencies: [Double] = []
    for result in results.withLock({ $0 }) { latencies += try result.get() }
    return (latencies, Clock.seconds - start)
  }

  private func work() {
    let result: Result<[Double], ApusError>
    do throws(ApusError) {
      result = .success(try BenchCommand.loop(engine, inputs, seconds))
    } catch {
      result = .failure(error)
    }
    results.withLock { $0.append(result) }
  }
}
