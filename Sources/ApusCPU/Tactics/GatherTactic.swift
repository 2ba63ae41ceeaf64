// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// `Gather`: rows of a table by index, each copied as one run.
struct GatherTactic: Tactic {
  let name = "cpu.gather.rows"
  let source = "native"
  let pool: ThreadPool

  func support(_ problem: Problem) -> Support {
    guard problem.op is Gather else { return .no(because: "not a Gather") }
    guard let data = problem.inputs[0], let indices = problem.inputs[1] else {
      return .no(because: "an operand is missing")
    }
    guard data.dataType.bitWidth >= 8, data.packing == nil else {
      return .no(because: "elements are smaller than a byte")
    }
    guard indices.dataType == .int64 || indices.dataType == .int32 else {
      return .no(because: "indices of type \(indices.dataType)")
    }
    return .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    Double(problem.outputs[0].count) * 1e-9
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let op = problem.op as? Gather, let data = problem.inputs[0],
      let indices = problem.inputs[1]
    else { throw ApusError(.internalError, "not a Gather") }
    let axis = op.axis < 0 ? op.axis + data.shape.count : op.axis
    let run = data.shape[(axis + 1)...].reduce(1, *) * data.dataType.bitWidth / 8
    return GatherKernel(
      outer: data.shape[..<axis].reduce(1, *), depth: data.shape[axis], run: run,
      indexCount: indices.count, wideIndices: indices.dataType == .int64)
  }
}

struct GatherKernel: Kernel {
  let outer: Int
  let depth: Int
  let run: Int
  let indexCount: Int
  let wideIndices: Bool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let data = arguments[0].pointer
    let indices = arguments[1].pointer
    let result = arguments[2].mutablePointer
    for position in 0..<indexCount {
      var index =
        wideIndices
        ? Int(indices.loadUnaligned(fromByteOffset: position * 8, as: Int64.self))
        : Int(indices.loadUnaligned(fromByteOffset: position * 4, as: Int32.self))
      if index < 0 { index += depth }
      guard index >= 0, index < depth else {
        throw ApusError(
          .execution, "index \(index) is outside an axis of \(depth) elements",
          hint: "check the values of the integer input")
      }
      for row in 0..<outer {
        (result + (row * indexCount + position) * run).copyMemory(
          from: data + (row * depth + index) * run, byteCount: run)
      }
    }
  }
}
