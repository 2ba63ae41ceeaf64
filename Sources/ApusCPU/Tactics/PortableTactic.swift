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
  let pitches: PitchSupport = [.operands, .results]

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
      RowCopy(output).spread(
        tensor.bytes.baseAddress!, to: arguments[problem.inputs.count + index].mutablePointer)
    }
  }

  private func view(_ operand: Problem.Operand, _ address: DeviceAddress) throws(ApusError)
    -> Tensor
  {
    let shape = operand.packing.map { [$0.elementCount] } ?? operand.shape
    let count = try Tensor.checkedCount(shape)
    if operand.pitch != nil {
      let tensor = try Tensor(operand.dataType, shape: shape)
      if count > 0 { RowCopy(operand).gather(address.pointer, to: tensor.mutableBytes.baseAddress!) }
      return tensor
    }
    let stored = operand.packing?.storedType(operand.dataType) ?? operand.dataType
    let bytes = UnsafeRawBufferPointer(
      start: address.pointer, count: stored.byteCount(of: count) ?? 0)
    let tensor = try Tensor(
      stored, shape: shape, storage: TensorStorage(viewing: bytes, owner: nil))
    guard let packing = operand.packing else { return tensor }
    return try packing.unpack(tensor, operand.dataType, shape: operand.shape)
  }
}

/// Copies between a tensor and an operand or result that may have gaps between its rows.
private struct RowCopy {
  let rows: Int
  let width: Int
  let step: Int

  init(_ operand: Problem.Operand) {
    let bytes = operand.dataType.bitWidth / 8
    rows = operand.pitch == nil ? 1 : operand.rowCount
    step = operand.rowStride * bytes
    width =
      operand.pitch == nil
      ? operand.dataType.byteCount(of: operand.count) ?? 0 : operand.rowWidth * bytes
  }

  func spread(_ tensor: UnsafeRawPointer, to result: UnsafeMutableRawPointer) {
    for row in 0..<rows {
      (result + row * step).copyMemory(from: tensor + row * width, byteCount: width)
    }
  }

  func gather(_ operand: UnsafeRawPointer, to tensor: UnsafeMutableRawPointer) {
    for row in 0..<rows {
      (tensor + row * width).copyMemory(from: operand + row * step, byteCount: width)
    }
  }
}
