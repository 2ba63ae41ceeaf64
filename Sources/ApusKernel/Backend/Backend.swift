// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// An address in a device's own address space; zero stands for an omitted operand. Only the backend
/// that made it may turn it into a pointer.
public struct DeviceAddress: Hashable, Sendable {
  /// The bits.
  public var bits: UInt64

  /// Wraps the bits.
  public init(bits: UInt64) { self.bits = bits }

  /// The address of an omitted operand.
  public static let none = DeviceAddress(bits: 0)

  /// The address `byteCount` bytes further on.
  public static func + (address: DeviceAddress, byteCount: Int) -> DeviceAddress {
    DeviceAddress(bits: address.bits &+ UInt64(bitPattern: Int64(byteCount)))
  }
}

/// What a device is, for choosing tactics and for recognising engines and timings made elsewhere.
public struct DeviceTraits: Sendable, Hashable {
  /// `cpu`, `cuda` ...
  public var kind: String
  /// The name for people.
  public var name: String
  /// Everything that measured times depend on: model, instruction sets, threads, driver.
  public var fingerprint: String
  /// The instruction set family in use, as it appears in tactic names.
  public var isa: String
  /// Threads one kernel may use.
  public var threadCount: Int
  /// Whether device addresses are host pointers, so that callers' memory is used in place.
  public var sharesHostMemory: Bool
  /// The element types whose products have fast kernels: `float32`, `bfloat16`, `int8` (unsigned times
  /// signed bytes, the latter constant), `uint8` (both sides computed) ...
  public var fastTypes: Set<DataType>
  /// What the hardware offers, for people.
  public var features: [String] = []
  /// Whether attention has a kernel of its own, so that networks which write it out gain from joining it.
  public var joinsAttention: Bool

  /// Describes a device.
  public init(
    kind: String, name: String, fingerprint: String, isa: String, threadCount: Int,
    sharesHostMemory: Bool, fastTypes: Set<DataType> = [.float32], joinsAttention: Bool = false,
    features: [String] = []
  ) {
    self.features = features
    self.joinsAttention = joinsAttention
    self.fastTypes = fastTypes
    self.kind = kind
    self.name = name
    self.fingerprint = fingerprint
    self.isa = isa
    self.threadCount = threadCount
    self.sharesHostMemory = sharesHostMemory
  }
}

/// Memory of a device, released when the last reference goes.
public final class DeviceMemory: Sendable {
  /// The first byte.
  public let address: DeviceAddress
  /// The size.
  public let byteCount: Int
  private let release: @Sendable () -> Void

  /// Wraps memory with the action that gives it back.
  public init(address: DeviceAddress, byteCount: Int, release: @escaping @Sendable () -> Void) {
    self.address = address
    self.byteCount = byteCount
    self.release = release
  }

  deinit { release() }
}

/// An ordered queue of copies and kernels. Work may run later than the call that queues it; only
/// `synchronize` says that it is done. Errors of queued work surface there.
public protocol ExecutionStream: AnyObject {
  /// Queues a copy into device memory; the source must stay unchanged until synchronised.
  func copyToDevice(from source: UnsafeRawPointer, to target: DeviceAddress, byteCount: Int)
    throws(ApusError)
  /// Queues a copy out of device memory.
  func copyToHost(from source: DeviceAddress, to target: UnsafeMutableRawPointer, byteCount: Int)
    throws(ApusError)
  /// Queues a copy within device memory.
  func copy(from source: DeviceAddress, to target: DeviceAddress, byteCount: Int) throws(ApusError)
  /// Waits until everything queued is done.
  func synchronize() throws(ApusError)
}

/// A kernel compiled for one problem.
public protocol Kernel: Sendable {
  /// Scratch memory a launch needs.
  var workspaceByteCount: Int { get }
  /// Queues the kernel. `arguments` holds the addresses of the operands, then of the results, then of
  /// the workspace; it stays valid until the stream is synchronised. Must not allocate.
  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
}

/// A device that runs engines: where memory comes from, how work is queued, which tactics exist.
public protocol Backend: Sendable {
  /// What the device is.
  var traits: DeviceTraits { get }
  /// The tactics, best first in general; a portable one that takes every problem is last.
  var tactics: [any Tactic] { get }
  /// Allocates device memory.
  func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory
  /// Makes memory that host and device both see as this host memory (sharing backends), or copies it
  /// to the device. `owner` keeps the host bytes alive.
  func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory
  /// Creates a queue.
  func makeStream() throws(ApusError) -> any ExecutionStream
  /// Takes memory out of the device's caches, so that the next kernel reads it from where it lies. Timings
  /// use it; it changes nothing else.
  func evict(_ memory: DeviceMemory)
  /// Measures what the device reaches at most, each of it for so many seconds; nil where that is not known.
  func roofline(seconds: Double) throws(ApusError) -> Roofline?
  /// Measures only how many operations of each type it does in a second.
  func peakOperations(seconds: Double) throws(ApusError) -> [DataType: Double]?
  /// How many queues make progress side by side when they are filled by `concurrently`.
  var laneCount: Int { get }
  /// Calls `work` for every lane below `count`, side by side where the device gains from it, and returns
  /// when all calls have returned.
  func concurrently(_ count: Int, _ work: any LaneWork)
}

/// What `Backend.concurrently` does in each lane.
public protocol LaneWork: AnyObject {
  /// Does the lane's share.
  func run(lane: Int)
}

extension Backend {
  public func evict(_ memory: DeviceMemory) {}
  public func roofline(seconds: Double) throws(ApusError) -> Roofline? { nil }
  public func peakOperations(seconds: Double) throws(ApusError) -> [DataType: Double]? { nil }
  public var laneCount: Int { 1 }
  public func concurrently(_ count: Int, _ work: any LaneWork) {
    for lane in 0..<count { work.run(lane: lane) }
  }
}
