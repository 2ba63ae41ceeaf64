// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

/// Memory of an operand or result while kernels are compared and timed. Where rows have gaps between them,
/// a part of a gap lies before the first row, so that writing on either side of a row is noticed.
struct BenchMemory {
  let memory: DeviceMemory
  private var before = 0
  private var gaps: [(start: Int, byteCount: Int)] = []

  /// Where the operand or result starts.
  var address: DeviceAddress { memory.address + before }

  /// Memory of something whose rows follow each other.
  init(memory: DeviceMemory) { self.memory = memory }

  /// Memory for an operand or result, marked in the gaps; `tensor` holds its elements, if there are any yet.
  init(
    _ operand: Problem.Operand, _ backend: any Backend, holding tensor: Tensor? = nil,
    on stream: (any ExecutionStream)? = nil
  ) throws(ApusError) {
    let rows = operand.pitch == nil ? 1 : operand.rowCount
    let elements = operand.pitch == nil ? operand.count : rows * operand.rowStride
    memory = try backend.allocate(byteCount: max(64, operand.dataType.byteCount(of: elements) ?? 0))
    let elementBytes = operand.dataType.bitWidth / 8
    let width = operand.rowWidth * elementBytes
    let step = operand.rowStride * elementBytes
    if operand.pitch != nil {
      // Rows begin with a line of the cache where there is space for that, as they mostly do.
      let half = (step - width) / 2
      before = half >= 64 ? half / 64 * 64 : half / elementBytes * elementBytes
      for row in 0..<rows {
        gaps.append((row * step, before))
        gaps.append((row * step + before + width, step - before - width))
      }
    }
    guard let tensor, let stream, let start = tensor.bytes.baseAddress, tensor.byteCount > 0 else { return }
    try markGaps(on: stream)
    for row in 0..<rows {
      try stream.copyToDevice(
        from: start + row * tensor.byteCount / rows, to: address + row * step,
        byteCount: tensor.byteCount / rows)
    }
    try stream.synchronize()
  }

  /// Makes numbers that would be noticed in a sum.
  private static let mark: UInt8 = 0xFB

  /// Writes what is not to change.
  func markGaps(on stream: any ExecutionStream) throws(ApusError) {
    guard let longest = gaps.map(\.byteCount).max(), longest > 0 else { return }
    let marks = [UInt8](repeating: Self.mark, count: longest)
    let result: Result<Void, ApusError> = marks.withUnsafeBytes { bytes in
      do throws(ApusError) {
        guard let start = bytes.baseAddress else { return .success(()) }
        for gap in gaps where gap.byteCount > 0 {
          try stream.copyToDevice(from: start, to: memory.address + gap.start, byteCount: gap.byteCount)
        }
        try stream.synchronize()
        return .success(())
      } catch { return .failure(error) }
    }
    try result.get()
  }

  /// Whether what was written has not changed.
  func gapsAreMarked(on stream: any ExecutionStream) throws(ApusError) -> Bool {
    guard !gaps.isEmpty else { return true }
    let found = try Tensor(.uint8, shape: [memory.byteCount])
    guard let start = found.mutableBytes.baseAddress else { return true }
    try stream.copyToHost(from: memory.address, to: start, byteCount: found.byteCount)
    try stream.synchronize()
    let bytes = found.bytes
    return gaps.allSatisfy { gap in
      bytes[gap.start..<gap.start + gap.byteCount].allSatisfy { $0 == Self.mark }
    }
  }
}
