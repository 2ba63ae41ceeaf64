// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor
import CApusShims
import Synchronization

/// The CPU: addresses are host pointers, streams run kernels at once on the calling thread and the
/// backend's thread pool.
public final class CPUBackend: Backend {
  public let traits: DeviceTraits
  public let tactics: [any Tactic]
  /// The threads that kernels share.
  package let pool: ThreadPool

  private static let instances = Mutex<[Int: CPUBackend]>([:])

  /// The backend with this many threads (0: one per core); made once, so that its threads are shared
  /// by all engines of the process.
  public static func shared(threadCount: Int) throws(ApusError) -> CPUBackend {
    let count = threadCount > 0 ? threadCount : CPUDescription.coreCount
    return instances.withLock { known in
      if let backend = known[count] { return backend }
      let backend = CPUBackend(threadCount: count)
      known[count] = backend
      return backend
    }
  }

  private init(threadCount: Int) {
    let isa = CPUDescription.isa
    traits = DeviceTraits(
      kind: "cpu", name: CPUDescription.name, fingerprint: CPUDescription.fingerprint,
      isa: isa.rawValue, threadCount: threadCount, sharesHostMemory: true,
      fastTypes: CPUDescription.fastTypes, joinsAttention: isa != .portable,
      features: CPUFeatures.host.names)
    pool = ThreadPool(threadCount: threadCount)
    tactics = CPUTactics.all(isa: isa, pool: pool)
    if isa == .portable && CPUDescription.isX86 {
      Log.warning("no AVX2 on this CPU (or switched off): portable kernels only, much slower")
    }
  }

  public func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory {
    let memory = try AlignedMemory(byteCount: byteCount)
    return DeviceMemory(address: address(memory.base), byteCount: byteCount) {
      withExtendedLifetime(memory) {}
    }
  }

  /// Uses the tensor where it lies.
  public func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory {
    let storage = tensor.storage
    return DeviceMemory(
      address: address(tensor.bytes.baseAddress!), byteCount: tensor.byteCount
    ) {
      withExtendedLifetime(storage) {}
    }
  }

  public func evict(_ memory: DeviceMemory) {
    guard let start = UnsafeRawPointer(bitPattern: UInt(memory.address.bits)) else { return }
    apus_evict(start, memory.byteCount)
  }

  public func roofline(seconds: Double) throws(ApusError) -> Roofline? {
    try CPURoofline(pool: pool, isa: CPUDescription.isa, seconds: seconds).measure()
  }

  public func peakOperations(seconds: Double) throws(ApusError) -> [DataType: Double]? {
    try CPURoofline(pool: pool, isa: CPUDescription.isa, seconds: seconds).operations()
  }

  private func address(_ pointer: UnsafeRawPointer) -> DeviceAddress {
    DeviceAddress(bits: UInt64(UInt(bitPattern: pointer)))
  }

  public func makeStream() throws(ApusError) -> any ExecutionStream { CPUStream() }

  /// One for each thread: kernels launched while others run stay on their thread.
  public var laneCount: Int { traits.threadCount }

  public func concurrently(_ count: Int, _ work: any LaneWork) {
    pool.parallelFor(count, Lanes(work: work)) { lanes, lane in lanes.work.run(lane: lane) }
  }
}

/// A structure, because the compiler specialises `parallelFor` for it and then nothing is allocated.
private struct Lanes {
  let work: any LaneWork
}

/// Runs everything at once, in the order of the calls.
final class CPUStream: ExecutionStream {
  func copyToDevice(from source: UnsafeRawPointer, to target: DeviceAddress, byteCount: Int)
    throws(ApusError)
  {
    target.mutablePointer.copyMemory(from: source, byteCount: byteCount)
  }

  func copyToHost(from source: DeviceAddress, to target: UnsafeMutableRawPointer, byteCount: Int)
    throws(ApusError)
  {
    target.copyMemory(from: source.pointer, byteCount: byteCount)
  }

  func copy(from source: DeviceAddress, to target: DeviceAddress, byteCount: Int) throws(ApusError) {
    target.mutablePointer.copyMemory(from: source.pointer, byteCount: byteCount)
  }

  func synchronize() throws(ApusError) {}
}

extension DeviceAddress {
  /// The address as the host pointer that it is on this backend. Omitted operands must not come here.
  @inline(__always) var pointer: UnsafeRawPointer {
    UnsafeRawPointer(bitPattern: UInt(bits)) ?? UnsafeRawPointer(bitPattern: 64)!
  }

  @inline(__always) var mutablePointer: UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(mutating: pointer)
  }
}
