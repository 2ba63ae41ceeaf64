// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
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
/// Each thread has a share of the tasks, neighbours, so that it finds in its caches what it wrote for the job
/// before. It takes them one by one from an atomic counter and then helps with the other shares, so a slow
/// thread takes fewer. A worker that finds no work spins for a while, then sleeps; one that wakes too late
/// misses the job without holding it up, and so does one whose core another program uses (`CoreSharing`).
/// One job runs at a time: a call made while another is in progress, from anywhere, runs its
/// tasks on the calling thread.
package final class ThreadPool: Sendable {
  /// A pool with one thread for every processor this process may use.
  package static let shared = ThreadPool(threadCount: availableProcessors())

  /// Threads that take part in a job, the caller included.
  package let threadCount: Int
  private let state: PoolState

  /// Starts `threadCount - 1` workers.
  package init(threadCount: Int) {
    let wanted = max(1, min(threadCount, 1024))
    state = PoolState(shareCount: wanted)
    for number in 1..<max(2, wanted) where wanted > 1 { state.startWorker(number) }
    self.threadCount = wanted
  }

  deinit { state.stop() }

  /// Calls `body(context, task)` once for every `task` in `0..<taskCount` and returns when all calls
  /// have returned.
  ///
  /// What a task needs comes in `context`: a `body` that captures nothing costs no memory, and kernels
  /// run without touching the heap.
  package func parallelFor<Context>(
    _ taskCount: Int, _ context: Context, _ body: @escaping (Context, _ task: Int) -> Void
  ) {
    if taskCount <= 1 || threadCount == 1 || !state.acquire() {
      for task in 0..<max(0, taskCount) { body(context, task) }
      return
    }
    withUnsafePointer(to: Job(context: context, body: body)) { job in
      state.run(taskCount, UnsafeRawPointer(job)) { job, task in
        job.assumingMemoryBound(to: Job<Context>.self).pointee.run(task)
      }
    }
    state.release()
  }

  /// Processors this process may use.
  package static func availableProcessors() -> Int {
    Int(apus_available_processors())
  }
}

/// What the tasks of one call have in common.
private struct Job<Context> {
  let context: Context
  let body: (Context, Int) -> Void

  func run(_ task: Int) { body(context, task) }
}

/// Runs a task of the job at this address.
private typealias TaskRunner = (_ job: UnsafeRawPointer, _ task: Int) -> Void

/// What a new worker is told.
private final class WorkerStart: Sendable {
  let state: PoolState
  let number: Int

  init(state: PoolState, number: Int) {
    self.state = state
    self.number = number
  }
}

/// What the workers and the callers share.
private final class PoolState: @unchecked Sendable {
  /// Bit 0: a job is open to join. Bits 1-15: workers inside it. Bits 16 and up: the job's number.
  private let word = Atomic<UInt64>(0)
  /// The next task of each thread's share, a cache line apart.
  private let next: UnsafeMutablePointer<Atomic<Int>>
  private let shareCount: Int
  private static let lineCounters = 8
  private let sleepers = Atomic<Int>(0)
  private let busy = Atomic<Bool>(false)
  /// Where the calling thread was when it opened the job.
  private let callersProcessor = Atomic<Int32>(-1)
  private let hasCoreForEachThread: Bool
  private let stopping = Atomic<Bool>(false)
  private var taskCount = 0
  private var job: (address: UnsafeRawPointer, run: TaskRunner)?
  private var threads: [pthread_t] = []
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

  /// How often a worker looks for a new job before it sleeps: some hundred microseconds.
  private static let spinLimit = 8000
  /// How often it does so before it looks whose core it is on.
  private static let spinsPerLook = 64

  init(shareCount: Int) {
    self.shareCount = shareCount
    hasCoreForEachThread = shareCount <= ThreadPool.availableProcessors()
    next = .allocate(capacity: shareCount * Self.lineCounters)
    for index in 0..<shareCount * Self.lineCounters { (next + index).initialize(to: Atomic(0)) }
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(wake, nil)
  }

  deinit {
    pthread_cond_destroy(wake)
    pthread_mutex_destroy(mutex)
    wake.deallocate()
    mutex.deallocate()
    next.deinitialize(count: shareCount * Self.lineCounters)
    next.deallocate()
  }

  func acquire() -> Bool {
    busy.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged
  }

  func release() { busy.store(false, ordering: .releasing) }

  /// Runs a job with whatever workers come in time.
  func run(_ count: Int, _ address: UnsafeRawPointer, _ run: @escaping TaskRunner) {
    taskCount = count
    job = (address, run)
    for share in 0..<shareCount {
      next[share * Self.lineCounters].store(firstTask(share), ordering: .relaxed)
    }
    callersProcessor.store(apus_current_processor(), ordering: .relaxed)
    let number = (word.load(ordering: .relaxed) >> 16) &+ 1
    word.store(number << 16 | 1, ordering: .sequentiallyConsistent)
    if sleepers.load(ordering: .sequentiallyConsistent) > 0 { wakeAll() }
    _ = work(0, during: nil)
    // Close the job: nobody joins from here on. Then wait for those inside.
    var current = word.bitwiseAnd(~1, ordering: .acquiringAndReleasing).newValue
    while current & 0xFFFE != 0 {
      apus_cpu_relax()
      current = word.load(ordering: .acquiring)
    }
    job = nil
  }

  /// The first task of a share.
  private func firstTask(_ share: Int) -> Int { taskCount * share / shareCount }

  /// Takes the tasks of a thread's own share, then what is left of the others; false if the thread's turn
  /// was over before all were taken.
  private func work(_ number: Int, during turn: Turn?) -> Bool {
    guard let job else { return true }
    for offset in 0..<shareCount {
      let share = (number + offset) % shareCount
      let end = firstTask(share + 1)
      while true {
        let task = next[share * Self.lineCounters].wrappingAdd(1, ordering: .relaxed).oldValue
        if task >= end { break }
        job.run(job.address, task)
        if let turn, turn.isOver(at: Clock.seconds) { return false }
      }
    }
    return true
  }

  private func wakeAll() {
    pthread_mutex_lock(mutex)
    pthread_cond_broadcast(wake)
    pthread_mutex_unlock(mutex)
  }

  // MARK: Workers

  func startWorker(_ number: Int) {
    let start = Unmanaged.passRetained(WorkerStart(state: self, number: number))
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

  func workerLoop(_ number: Int) {
    var sharing = CoreSharing(maySeparate: hasCoreForEachThread)
    var seen: UInt64 = 0
    while let current = openJob(after: seen, &sharing) {
      let joined = word.weakCompareExchange(
        expected: current, desired: current &+ 2, ordering: .acquiringAndReleasing)
      if !joined.exchanged { continue }
      // One whose turn is over leaves, so that nobody waits for it, and may come back to the same job.
      if work(number, during: sharing.turn) { seen = current >> 16 }
      word.wrappingSubtract(2, ordering: .releasing)
      sharing.avoid(callersProcessor.load(ordering: .relaxed))
      sharing.giveWay()
    }
  }

  /// Waits for a job that the worker has not seen; nil when the pool stops.
  private func openJob(after seen: UInt64, _ sharing: inout CoreSharing) -> UInt64? {
    var spins = 0
    while true {
      let current = word.load(ordering: .acquiring)
      if current >> 16 != seen && current & 1 == 1 { return current }
      if stopping.load(ordering: .relaxed) { return nil }
      spins += 1
      if spins < Self.spinLimit {
        apus_cpu_relax()
        if spins % Self.spinsPerLook == 0 {
          sharing.avoid(callersProcessor.load(ordering: .relaxed))
        }
      } else {
        sleep(seen)
        sharing.begin()
        spins = 0
      }
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
  start.state.workerLoop(start.number)
  return nil
}
