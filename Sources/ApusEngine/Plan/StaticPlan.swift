// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// A graph all of whose sizes are known, turned into an ordered list of launches with one arena.
/// Immutable; contexts bind it to memory of their own (`PlanInstance`).
package final class StaticPlan: Sendable {
  /// Where an operand of a launch lives.
  package enum Slot: Sendable {
    /// Bytes of the arena from this offset.
    case arena(Int)
    /// Bytes of a constant.
    case constant(DeviceMemory, Int)
    /// Bytes of the graph input with this number.
    case input(Int, Int)
    /// Bytes of the graph result with this number.
    case output(Int, Int)
    /// An omitted operand.
    case none

    /// The place `byteCount` further on.
    func advanced(by byteCount: Int) -> Slot {
      switch self {
      case .arena(let offset): .arena(offset + byteCount)
      case .constant(let memory, let offset): .constant(memory, offset + byteCount)
      case .input(let index, let offset): .input(index, offset + byteCount)
      case .output(let index, let offset): .output(index, offset + byteCount)
      case .none: .none
      }
    }
  }

  /// One launch.
  package struct Step: Sendable {
    package let kernel: any Kernel
    /// Operands, results, workspace.
    package let slots: [Slot]
    /// The node it computes, for reports.
    package let nodeName: String
    package let operatorName: String
    package let sources: [String]
    package let tacticID: String
    package let tacticSource: String
    package let problem: Problem
  }

  /// A result that is also an input, a constant or another result, copied at the end.
  package struct Copy: Sendable {
    package let source: Slot
    package let output: Int
    package let byteCount: Int
  }

  package let inputTypes: [TensorType]
  package let outputTypes: [TensorType]
  package let steps: [Step]
  package let copies: [Copy]
  package let memory: MemoryPlan
  /// Where branches may run side by side, in order.
  package let forks: [Fork]
  /// How often the steps run, each time on the next part of every input and result.
  package let repeats: Int
  /// Bytes of each input, and of each result, that one repetition takes.
  let partByteCounts: (inputs: [Int], outputs: [Int])

  package init(
    inputTypes: [TensorType], outputTypes: [TensorType], steps: [Step], copies: [Copy],
    memory: MemoryPlan, forks: [Fork] = [], repeats: Int = 1
  ) {
    self.forks = forks
    self.repeats = repeats
    self.inputTypes = inputTypes
    self.outputTypes = outputTypes
    self.steps = steps
    self.copies = copies
    self.memory = memory
    func parts(_ types: [TensorType]) -> [Int] {
      types.map {
        ($0.dataType.byteCount(of: ($0.shape ?? []).reduce(1, &*)) ?? 0) / max(1, repeats)
      }
    }
    partByteCounts = (parts(inputTypes), parts(outputTypes))
  }

  /// The plan for a batch of `count` members, given that for one.
  func repeated(_ count: Int) -> StaticPlan {
    func whole(_ types: [TensorType]) -> [TensorType] {
      types.compactMap { BatchSplit.resized(.tensor($0), to: count).tensor }
    }
    return StaticPlan(
      inputTypes: whole(inputTypes), outputTypes: whole(outputTypes), steps: steps, copies: copies,
      memory: memory, repeats: count)
  }
}
