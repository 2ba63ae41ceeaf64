// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor
import Dispatch
import Synchronization

/// A device that exists in tests only: addresses are not pointers, and everything queued on a stream
/// runs later, on another thread, when the stream is synchronised. Code above the backend seam that
/// assumed host memory or immediate execution fails on it.
public final class FakeDeviceBackend: Backend {
  public let traits: DeviceTraits
  public let tactics: [any Tactic]
  let memory = FakeMemory()
  /// The number of kernels launched so far.
  public var launchCount: Int { memory.launches.withLock { $0 } }

  /// A device that multiplies these types fast.
  public init(fastTypes: Set<DataType> = [.float32]) {
    traits = DeviceTraits(
      kind: "fake", name: "fake asynchronous device", fingerprint: "fake/1", isa: "none",
      threadCount: 1, sharesHostMemory: false, fastTypes: fastTypes)
    tactics = [FakeReferenceTactic(memory: memory)]
  }

  public func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory {
    try memory.allocate(byteCount)
  }

  public func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory {
    let device = try memory.allocate(max(64, tensor.byteCount))
    if tensor.byteCount > 0 {
      try memory.resolve(device.address, tensor.byteCount).copyMemory(
        from: tensor.bytes.baseAddress!, byteCount: tensor.byteCount)
    }
    return device
  }

  public func makeStream() throws(ApusError) -> any ExecutionStream { FakeStream(memory: memory) }
}

/// The fake device's address space: blocks at made-up addresses far from any host pointer.
final class FakeMemory: Sendable {
  private struct Block {
    let base: UInt64
    let host: AlignedMemory
  }

  private struct State {
    var blocks: [Block] = []
    var next: UInt64 = 0xfa4e_0000_0000_0000
  }

  private let state = Mutex(State())
  let launches = Mutex(0)

  func allocate(_ byteCount: Int) throws(ApusError) -> DeviceMemory {
    let host = try AlignedMemory(byteCount: byteCount)
    let base = state.withLock { state in
      let base = state.next
      state.blocks.append(Block(base: base, host: host))
      state.next += UInt64(byteCount + 4096) & ~63
      return base
    }
    return DeviceMemory(address: DeviceAddress(bits: base), byteCount: byteCount) { [weak self] in
      self?.state.withLock { state in state.blocks.removeAll { $0.base == base } }
    }
  }

  /// The host bytes behind an address range.
  ///
  /// - Throws: `execution` for a range that is not inside one live block.
  func resolve(_ address: DeviceAddress, _ byteCount: Int) throws(ApusError)
    -> UnsafeMutableRawPointer
  {
    let found: UnsafeMutableRawPointer? = state.withLock { state in
      for block in state.blocks where address.bits >= block.base {
        let offset = Int(address.bits - block.base)
        if offset + byteCount <= block.host.byteCount { return block.host.base + offset }
      }
      return nil
    }
    guard let found else {
      throw ApusError(
        .execution, "address \(String(address.bits, radix: 16)) + \(byteCount) is not device memory")
    }
    return found
  }
}

/// Keeps work in a list and runs it on another thread at `synchronize`.
final class FakeStream: ExecutionStream {
  private let memory: FakeMemory
  private var work: [() throws -> Void] = []

  init(memory: FakeMemory) { self.memory = memory }

  func enqueue(_ body: @escaping () throws -> Void) { work.append(body) }

  func copyToDevice(from source: UnsafeRawPointer, to target: DeviceAddress, byteCount: Int)
    throws(ApusError)
  {
    enqueue { [memory] in
      try memory.resolve(target, byteCount).copyMemory(from: source, byteCount: byteCount)
    }
  }

  func copyToHost(from source: DeviceAddress, to target: UnsafeMutableRawPointer, byteCount: Int)
    throws(ApusError)
  {
    enqueue { [memory] in
      target.copyMemory(from: try memory.resolve(source, byteCount), byteCount: byteCount)
    }
  }

  func copy(from source: DeviceAddress, to target: DeviceAddress, byteCount: Int) throws(ApusError) {
    enqueue { [memory] in
      try memory.resolve(target, byteCount).copyMemory(
        from: try memory.resolve(source, byteCount), byteCount: byteCount)
    }
  }

  func synchronize() throws(ApusError) {
    let batch = FakeBatch(work)
    work = []
    let thread = DispatchQueue(label: "fake device")
    thread.sync { batch.run() }
    if let error = batch.error { throw error }
  }
}

/// One synchronisation's work. Unchecked: the queue runs it while the stream waits.
private final class FakeBatch: @unchecked Sendable {
  private let work: [() throws -> Void]
  private(set) var error: ApusError?

  init(_ work: [() throws -> Void]) { self.work = work }

  func run() {
    for body in work {
      do {
        try body()
      } catch let failure as ApusError {
        error = failure
        return
      } catch {
        self.error = ApusError(.execution, "\(error)")
        return
      }
    }
  }
}

/// Every problem by its reference semantics, on device memory.
struct FakeReferenceTactic: Tactic {
  let name = "fake.reference"
  let source = "portable"
  let memory: FakeMemory

  func support(_ problem: Problem) -> Support { .yes }
  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double { 1 }
  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  { FakeKernel(problem: problem, memory: memory) }
}

struct FakeKernel: Kernel {
  let problem: Problem
  let memory: FakeMemory
  /// More than nothing, so that workspace is planned and passed.
  var workspaceByteCount: Int { 128 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    guard let stream = stream as? FakeStream else {
      throw ApusError(.execution, "the stream belongs to another device")
    }
    let addresses = Array(
      UnsafeBufferPointer(
        start: arguments, count: problem.inputs.count + problem.outputs.count + 1))
    stream.enqueue { [problem, memory] in
      memory.launches.withLock { $0 += 1 }
      _ = try memory.resolve(addresses[addresses.count - 1], 128)
      var operands: [RuntimeValue?] = []
      for (index, input) in problem.inputs.enumerated() {
        operands.append(
          try input.map { .tensor(try Self.read($0, addresses[index], memory)) })
      }
      let results = try problem.op.evaluate(operands)
      for (index, output) in problem.outputs.enumerated() {
        guard let tensor = results[index].tensor, tensor.shape == output.shape else {
          throw ApusError(.execution, "result \(index) has another shape")
        }
        guard tensor.byteCount > 0 else { continue }
        try memory.resolve(addresses[problem.inputs.count + index], tensor.byteCount).copyMemory(
          from: tensor.bytes.baseAddress!, byteCount: tensor.byteCount)
      }
    }
  }

  private static func read(_ operand: Problem.Operand, _ address: DeviceAddress, _ memory: FakeMemory)
    throws -> Tensor
  {
    let tensor = try Tensor(operand.dataType, shape: operand.shape)
    if tensor.byteCount > 0 {
      tensor.mutableBytes.baseAddress!.copyMemory(
        from: try memory.resolve(address, tensor.byteCount), byteCount: tensor.byteCount)
    }
    return tensor
  }
}
