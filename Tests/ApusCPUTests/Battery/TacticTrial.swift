// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusTensor
import ApusX86

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Runs kernels of one problem in guarded memory and compares them with the reference.
final class TacticTrial {
  /// What was wrong with a kernel, or how near it came to the reference.
  struct Outcome {
    /// The worst difference, where the allowed one is 1.
    var error = 0.0
    var failure: String?
  }

  private let sample: BatteryProblem
  private let stream: any ExecutionStream
  private let isa: String
  private let want: [[Double]]
  private var operands: [Placement: [GuardedRegion?]] = [:]
  private var packed: [Placement: [Packed]] = [:]
  private var results: [Placement: [GuardedRegion]] = [:]

  /// A constant in the order that a kernel reads.
  private struct Packed {
    let operand: Int
    let layout: PackedLayout
    let region: GuardedRegion
  }

  init(_ sample: BatteryProblem, _ backend: any Backend) throws {
    self.sample = sample
    stream = try backend.makeStream()
    isa = backend.traits.isa
    want = try sample.problem.op.evaluate(sample.operands.map { $0.map { .tensor($0) } })
      .prefix(sample.problem.outputs.count).map { $0.tensor?.doubles() ?? [] }
  }

  /// Tries one configuration with its buffers in the given places. `other` is the same tactic with another number of
  /// threads, which computes the last placement: neither may change a bit.
  func run(
    _ tactic: any Tactic, _ configuration: TacticConfiguration, other: any Tactic,
    placements: [Placement]
  ) -> Outcome {
    let problem = sample.problem
    do {
      let own = try compile(tactic, configuration)
      let layouts = tactic.packing(problem, configuration)
      var outcome = Outcome()
      var first: [Tensor] = []
      for (number, placement) in placements.enumerated() {
        let isLast = number > 0 && number == placements.count - 1
        let kernel = isLast ? try compile(other, configuration) : own
        FaultReport.running(
          "\(tactic.id(configuration, isa: isa)) with buffers \(placement) for \(problem.key)")
        defer { FaultReport.done() }
        let got = try launch(kernel, layouts, placement)
        if let damage = try damage(placement) { return Outcome(failure: damage) }
        if first.isEmpty {
          first = got
          for (index, result) in got.enumerated() {
            let comparison = ResultComparison(
              problem, result.dataType, scale: ResultComparison.scale(want[index]))
            let verdict = comparison.verdict(result.doubles(), want[index])
            outcome.error = max(outcome.error, verdict.error)
            if let reason = verdict.reason {
              outcome.failure = "result \(index), buffers \(placement): \(reason)"
              return outcome
            }
          }
        } else if let difference = difference(got, first) {
          return Outcome(
            failure: """
              with buffers \(placement)\(isLast ? " and another number of threads" : "") results differ from those \
              with buffers \(placements[0]): \(difference)
              """)
        }
      }
      for operand in tactic.inPlaceInputs(problem) {
        let got = try launch(own, layouts, placements[0], inPlaceOf: operand)
        if let difference = difference(got, first) {
          return Outcome(failure: "in place of operand \(operand) results differ: \(difference)")
        }
      }
      return outcome
    } catch {
      return Outcome(failure: "\(error)")
    }
  }

  /// Compiles a kernel, whose code must keep to the instruction set in use.
  private func compile(_ tactic: any Tactic, _ configuration: TacticConfiguration) throws
    -> any Kernel
  {
    try InstructionExtension.$refused.withValue(Self.refused) {
      try tactic.compile(sample.problem, configuration)
    }
  }

  private static let refused: Set<InstructionExtension> =
    switch ISA.current {
    case .avx512: []
    case .avx2VNNI: [.avx512]
    default: [.avx512, .avxVNNI]
    }

  private func difference(_ got: [Tensor], _ first: [Tensor]) -> String? {
    for (index, (a, b)) in zip(got, first).enumerated() where !Self.isEqual(a.bytes, b.bytes) {
      let (x, y) = (a.doubles(), b.doubles())
      for place in x.indices where x[place] != y[place] && !(x[place].isNaN && y[place].isNaN) {
        return "element \(place) of result \(index) is \(x[place]) and \(y[place])"
      }
    }
    return nil
  }

  /// Launches the kernel and copies its results; the first one may be made where an operand is.
  private func launch(
    _ kernel: any Kernel, _ layouts: [Int: PackedLayout], _ placement: Placement,
    inPlaceOf shared: Int? = nil
  ) throws -> [Tensor] {
    let problem = sample.problem
    var addresses: [DeviceAddress] = []
    for (index, region) in try operandRegions(placement).enumerated() {
      if let layout = layouts[index], problem.inputs[index]?.constant != nil {
        addresses.append(try packedRegion(index, layout, placement).address)
      } else {
        addresses.append(region?.address ?? .none)
      }
    }
    var outputs = try resultRegions(placement)
    for output in outputs { output.fill(placement.filling) }
    if let shared, let tensor = sample.operands[shared] {
      let copy = try Self.region(tensor, alignment: Self.elementBytes(tensor.dataType), placement)
      addresses[shared] = copy.address
      outputs[0] = copy
    }
    addresses += outputs.map(\.address)
    let workspace = try GuardedRegion(
      byteCount: kernel.workspaceByteCount, alignment: 64, placement)
    workspace.fill(placement.filling)
    addresses.append(kernel.workspaceByteCount > 0 ? workspace.address : .none)
    let launched: Result<Void, ApusError> = addresses.withUnsafeBufferPointer { buffer in
      do throws(ApusError) {
        guard let start = buffer.baseAddress else { return .success(()) }
        try kernel.launch(start, on: stream)
        try stream.synchronize()
        return .success(())
      } catch { return .failure(error) }
    }
    try launched.get()
    guard workspace.isUntouchedAround else {
      throw ApusError(.internalError, "memory beside the workspace was written")
    }
    return try zip(problem.outputs, outputs).map { output, region in
      let tensor = try Tensor(output.dataType, shape: output.shape)
      tensor.mutableBytes.copyMemory(from: UnsafeRawBufferPointer(region.bytes))
      return tensor
    }
  }

  /// What was written that is not a result.
  private func damage(_ placement: Placement) throws -> String? {
    for (index, region) in try resultRegions(placement).enumerated() where !region.isUntouchedAround
    {
      return "memory beside result \(index) was written, buffers \(placement)"
    }
    for (index, region) in try operandRegions(placement).enumerated() {
      guard let region, let tensor = sample.operands[index] else { continue }
      if !region.isUntouchedAround
        || !Self.isEqual(UnsafeRawBufferPointer(region.bytes), tensor.bytes)
      {
        return "operand \(index) was written, buffers \(placement)"
      }
    }
    return nil
  }

  // MARK: Memory, which all configurations share

  private func operandRegions(_ placement: Placement) throws -> [GuardedRegion?] {
    if let known = operands[placement] { return known }
    let made = try sample.operands.map { tensor in
      try tensor.map { try Self.region($0, alignment: Self.elementBytes($0.dataType), placement) }
    }
    operands[placement] = made
    return made
  }

  private func packedRegion(_ index: Int, _ layout: PackedLayout, _ placement: Placement) throws
    -> GuardedRegion
  {
    if let known = packed[placement]?.first(where: { $0.operand == index && $0.layout == layout }) {
      return known.region
    }
    guard let constant = sample.operands[index] else {
      throw ApusError(.internalError, "operand \(index) has no elements")
    }
    // Packed constants come from engine files, where they start at multiples of 64 bytes. Where they end at a
    // guard page they do not, which is more than kernels have to bear but finds the smallest step too far.
    let tensor = try layout.pack(constant)
    let alignment = placement == .beforeGuard ? Self.elementBytes(tensor.dataType) : 64
    let region = try Self.region(tensor, alignment: alignment, placement)
    packed[placement, default: []].append(Packed(operand: index, layout: layout, region: region))
    return region
  }

  private func resultRegions(_ placement: Placement) throws -> [GuardedRegion] {
    if let known = results[placement] { return known }
    let made = try sample.problem.outputs.map { output in
      try GuardedRegion(
        byteCount: output.dataType.byteCount(of: output.count) ?? 0,
        alignment: Self.elementBytes(output.dataType), placement)
    }
    results[placement] = made
    return made
  }

  private static func region(_ tensor: Tensor, alignment: Int, _ placement: Placement) throws
    -> GuardedRegion
  {
    let region = try GuardedRegion(byteCount: tensor.byteCount, alignment: alignment, placement)
    region.bytes.copyMemory(from: UnsafeRawBufferPointer(tensor.bytes))
    return region
  }

  private static func isEqual(_ a: UnsafeRawBufferPointer, _ b: UnsafeRawBufferPointer) -> Bool {
    guard a.count == b.count, let x = a.baseAddress, let y = b.baseAddress else {
      return a.count == b.count
    }
    return memcmp(x, y, a.count) == 0
  }

  private static func elementBytes(_ type: DataType) -> Int { max(1, type.bitWidth / 8) }
}
