// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// Any problem, by the operator's reference semantics in plain Swift: the last entry of the tactic
/// list, so that every operator runs on every machine.
struct PortableTactic: Tactic {
  let name = "cpu.portable"
  let source = "portable"

  func support(_ problem: Problem) -> Support { .yes }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    1 + problem.cost.operations * 1e-8
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  { PortableKernel(problem: problem) }
}

/// Runs `evaluate` on views of the operands and copies the results out. Allocates.
struct PortableKernel: Kernel {
  let problem: Problem
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    var operands: [RuntimeValue?] = []
    for (index, input) in problem.inputs.enumerated() {
      guard let input else {
        operands.append(nil)
        continue
      }
      operands.append(.tensor(try view(input, arguments[index])))
    }
    let results = try problem.op.evaluate(operands)
    for (index, output) in problem.outputs.enumerated() {
      guard index < results.count, let tensor = results[index].tensor,
        tensor.shape == output.shape, tensor.dataType == output.dataType
      else {
        throw ApusError(
          .internalError,
          "\(problem.op.name) was to give \(output.dataType)\(output.shape) as result \(index)")
      }
      guard tensor.byteCount > 0 else { continue }
      arguments[problem.inputs.count + index].mutablePointer.copyMemory(
        from: tensor.bytes.baseAddress!, byteCount: tensor.byteCount)
    }
  }

  private func view(_ operand: Problem.Operand, _ address: DeviceAddress) throws(ApusError)
    -> Tensor
  {
    let shape = operand.packing.map { [$0.elementCount] } ?? operand.shape
    let count = try Tensor.checkedCount(shape)
    let stored = operand.packing?.storedType(operand.dataType) ?? operand.dataType
    let bytes = UnsafeRawBufferPointer(
      start: address.pointer, count: stored.byteCount(of: count) ?? 0)
    let tensor = try Tensor(
      stored, shape: shape, storage: TensorStorage(viewing: bytes, owner: nil))
    guard let packing = operand.packing else { return tensor }
    return try packing.unpack(tensor, operand.dataType, shape: operand.shape)
  }
}
