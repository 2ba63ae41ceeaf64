// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel

/// A plan that computes an operand with packed weights, an epilogue's extra operands and scratch memory.
protocol PackedConvPlan: Sendable {
  var workspaceByteCount: Int { get }

  func run(
    input: UnsafeRawPointer, packedWeights: UnsafeRawPointer, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>?, workspace: UnsafeMutableRawPointer, pool: ThreadPool)
}

extension ConvPlan: PackedConvPlan {}
extension TransposedConvPlan: PackedConvPlan {}
extension WinogradPlan: PackedConvPlan {}

/// Runs such a plan. Arguments: the input, the weights, extra operands, the result, scratch memory.
struct PackedConvKernel: Kernel {
  let plan: any PackedConvPlan
  let argumentCount: Int
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    plan.run(
      input: arguments[0].pointer, packedWeights: arguments[1].pointer,
      output: arguments[argumentCount].mutablePointer, operands: arguments.pointers(from: 2),
      workspace: arguments[argumentCount + 1].mutablePointer, pool: pool)
  }
}
