// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusOps

/// The operators of a chain by kernels of their own, one after the other: what a kernel for the whole chain is
/// compared with and must be faster than. What lies between them is in the workspace.
final class SequenceKernel: Kernel, @unchecked Sendable {
  let workspaceByteCount: Int
  private let chain: Chain
  private let kernels: [any Kernel]
  /// Where the results of all but the last operator begin in the workspace, and where theirs does.
  private let offsets: [Int]
  /// The arguments of each kernel, which must stay where they are until the stream is synchronised.
  private let tables: [UnsafeMutablePointer<DeviceAddress>]

  /// Puts kernels together; `results` are the problems' results in bytes.
  init(_ chain: Chain, kernels: [any Kernel], results: [Int]) {
    self.chain = chain
    self.kernels = kernels
    var offsets = [0]
    for bytes in results.dropLast() { offsets.append(offsets[offsets.count - 1] + (bytes + 127) / 64 * 64) }
    self.offsets = offsets
    workspaceByteCount =
      offsets[offsets.count - 1] + (kernels.map(\.workspaceByteCount).max() ?? 0)
    tables = chain.operandCounts.map { count in
      let table = UnsafeMutablePointer<DeviceAddress>.allocate(capacity: count + 3)
      table.initialize(repeating: .none, count: count + 3)
      return table
    }
  }

  deinit { for table in tables { table.deallocate() } }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let count = chain.operandCounts.reduce(1, +)
    let (result, workspace) = (arguments[count], arguments[count + 1])
    var first = arguments[0]
    for (stage, kernel) in kernels.enumerated() {
      let operands = chain.operands(of: stage)
      let table = tables[stage]
      table[0] = first
      for (index, operand) in operands.enumerated() { table[index + 1] = arguments[operand] }
      let isLast = stage == kernels.count - 1
      table[operands.count + 1] = isLast ? result : workspace + offsets[stage]
      table[operands.count + 2] = workspace + offsets[offsets.count - 1]
      try kernel.launch(table, on: stream)
      first = table[operands.count + 1]
    }
  }
}
