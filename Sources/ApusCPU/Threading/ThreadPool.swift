// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import CApusShims
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Threads that run the tasks of a kernel together with the calling thread.
///
/// Tasks are handed out one by one from an atomic counter, so a slow thread takes fewer. A worker that
/// finds no work spins for a while, then sleeps; one that wakes too late misses the job without holding
/// it up. One job runs at a time: a call made while another is in progress, from anywhere, runs its
/// tasks on the calling thread.
package final class ThreadPool: Sendable {
  /// A pool with one thread for every processor this process may use.
  package static let shared = ThreadPool(threadCount: availableProcessors())

  /// Threads that take part in a job, the caller included.
  package let threadCount: Int
  private let state = PoolState()

  /// Starts `threadCount - 1` workers.
  package init(threadCount: Int) {
    let wanted = max(1, min(threadCount, 1024))
    for index in 1..<max(2, wanted) where index < wanted { state.startWorker(index) }
    self.threadCount = wanted
  }

  deinit { state.stop() }

  /// Calls `body(task, thread)` once for every `task` in `0..<taskCount` and returns when all calls
  /// have returned. `thread` is below `threadCount` and no two calls in progress share it.
  package func parallelFor(_ taskCount: Int, _ body: (_ task: Int, _ thread: Int) -> Void) {
    if taskCount <= 1 || threadCount == 1 || !state.acquire() {
      for task in 0..<max(0, taskCount) { body(task, 0) }
      return
    }
    withoutActuallyEscaping(body) { escaping in
      withUnsafePointer(to: TaskBody(call: escaping)) { pointer in state.run(taskCount, pointer) }
    }
    state.release()
  }

  /// Processors this process may use.
  package static func availableProcessors() -> Int {
    Int(apus_available_processors())
  }
}

/// The closure of a job. A structure, because a function behind a generic pointer would be wrapped.
private struct TaskBody {
  let call: (Int, Int) -> Void
}

/// What the workers and the callers share.
private final class PoolState: @unchecked Sendable {
  /// Bit 0: a job is open to join. Bits 1-15: workers inside it. Bits 16 and up: the job's number.
  private let word = Atomic<UInt64>(0)
  private let nextTask = Atomic<Int>(0)
  private let sleepers = Atomic<Int>(0)
  private let busy = Atomic<Bool>(false)
  private let stopping = Atomic<Bool>(false)
  private var taskCount = 0
  private var body: UnsafePointer<TaskBody>?
  private var threads: [pthread_t] = []
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

  /// How often a worker looks for a new job before it sleeps: some hundred microseconds.
  private static let spinLimit = 8000

  init() {
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(wake, nil)
  }

  deinit {
    pthread_cond_destroy(wake)
    pthread_mutex_destroy(mutex)
    wake.deallocate()
    mutex.deallocate()
  }

  func acquire() -> Bool {
    busy.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged
  }

  func release() { busy.store(false, ordering: .releasing) }

  /// Runs a job with whatever workers come in time.
  func run(_ count: Int, _ body: UnsafePointer<TaskBody>) {
    taskCount = count
    self.body = body
    nextTask.store(0, ordering: .relaxed)
    let number = (word.load(ordering: .relaxed) >> 16) &+ 1
    word.store(number << 16 | 1, ordering: .sequentiallyConsistent)
    if sleepers.load(ordering: .sequentiallyConsistent) > 0 { wakeAll() }
    work(thread: 0)
    // Close the job: nobody joins from here on. Then wait for those inside.
    var current = word.bitwiseAnd(~1, ordering: .acquiringAndReleasing).newValue
    while current & 0xFFFE != 0 {
      apus_cpu_relax()
      current = word.load(ordering: .acquiring)
    }
    self.body = nil
  }

  private func work(thread: Int) {
    guard let body = body?.pointee else { return }
    while true {
      let task = nextTask.wrappingAdd(1, ordering: .relaxed).oldValue
      if task >= taskCount { return }
      body.call(task, thread)
    }
  }

  private func wakeAll() {
    pthread_mutex_lock(mutex)
    pthread_cond_broadcast(wake)
    pthread_mutex_unlock(mutex)
  }

  // MARK: Workers

  func startWorker(_ index: Int) {
    let start = Unmanaged.passRetained(WorkerStart(state: self, index: index))
    #if canImport(Darwin)
      var thread: pthread_t?
    #else
      var thread = pthread_t()
    #endif
    let failure = pthread_create(&thread, nil, workerMain, start.toOpaque())
    if failure != 0 {
      start.release()
      return
    }
    #if canImport(Darwin)
      if let thread { threads.append(thread) }
    #else
      threads.append(thread)
    #endif
  }

  func stop() {
    stopping.store(true, ordering: .sequentiallyConsistent)
    wakeAll()
    for thread in threads { pthread_join(thread, nil) }
  }

  func workerLoop(_ index: Int) {
    var seen: UInt64 = 0
    while true {
      var spins = 0
      var current = word.load(ordering: .acquiring)
      while current >> 16 == seen || current & 1 == 0 {
        if stopping.load(ordering: .relaxed) { return }
        spins += 1
        if spins < Self.spinLimit {
          apus_cpu_relax()
        } else {
          sleep(seen)
          spins = 0
        }
        current = word.load(ordering: .acquiring)
      }
      let joined = word.weakCompareExchange(
        expected: current, desired: current &+ 2, ordering: .acquiringAndReleasing)
      if !joined.exchanged { continue }
      seen = current >> 16
      work(thread: index)
      word.wrappingSubtract(2, ordering: .releasing)
    }
  }

  /// Sleeps until a job that the worker has not seen is open.
  private func sleep(_ seen: UInt64) {
    sleepers.wrappingAdd(1, ordering: .sequentiallyConsistent)
    pthread_mutex_lock(mutex)
    while true {
      let current = word.load(ordering: .sequentiallyConsistent)
      if (current >> 16 != seen && current & 1 == 1) || stopping.load(ordering: .relaxed) { break }
      pthread_cond_wait(wake, mutex)
    }
    pthread_mutex_unlock(mutex)
    sleepers.wrappingSubtract(1, ordering: .relaxed)
  }
}

/// What a new thread is told.
private final class WorkerStart {
  let state: PoolState
  let index: Int

  init(state: PoolState, index: Int) {
    self.state = state
    self.index = index
  }
}

#if canImport(Darwin)
  private func workerMain(_ argument: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
    runWorker(argument)
  }
#else
  private func workerMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    argument.flatMap(runWorker)
  }
#endif

private func runWorker(_ argument: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
  let start = Unmanaged<WorkerStart>.fromOpaque(argument).takeRetainedValue()
  start.state.workerLoop(start.index)
  return nil
}
