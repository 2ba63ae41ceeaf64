// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel

/// A tactic whose kernel is a plain Swift function over tasks: the body gets the launch's addresses and
/// a task number, and the pool shares the tasks out.
protocol NativeTactic: Tactic {
  var pool: ThreadPool { get }
  /// The loop for a problem, or the reason why there is none.
  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal>
}

/// Why a native tactic does not take a problem.
struct NativeRefusal: Error, ExpressibleByStringLiteral {
  let reason: String
  init(stringLiteral value: String) { reason = value }
}

/// Independent tasks over one launch's operands.
struct NativeLoop: Sendable {
  /// The number of tasks.
  let taskCount: Int
  /// Runs a task; `operands` holds the operands' addresses, then the results'.
  let body: @Sendable (_ operands: UnsafePointer<DeviceAddress>, _ task: Int) -> Void
}

extension NativeTactic {
  var source: String { "native" }

  func support(_ problem: Problem) -> Support {
    switch loop(problem) {
    case .success: .yes
    case .failure(let refusal): .no(because: refusal.reason)
    }
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 3e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    switch loop(problem) {
    case .success(let loop): return NativeKernel(loop: loop, pool: pool)
    case .failure(let refusal): throw ApusError(.internalError, refusal.reason)
    }
  }
}

struct NativeKernel: Kernel {
  let loop: NativeLoop
  let pool: ThreadPool
  var workspaceByteCount: Int { 0 }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    pool.parallelFor(loop.taskCount, (loop, arguments)) { run, task in run.0.body(run.1, task) }
  }
}

extension UnsafePointer<DeviceAddress> {
  /// Operand `index` as floats.
  @inline(__always) func floats(_ index: Int) -> UnsafePointer<Float> {
    self[index].pointer.assumingMemoryBound(to: Float.self)
  }

  /// Result at position `index` as floats.
  @inline(__always) func mutableFloats(_ index: Int) -> UnsafeMutablePointer<Float> {
    self[index].mutablePointer.assumingMemoryBound(to: Float.self)
  }
}

extension Problem {
  /// Whether every operand and result is a dense `float32` tensor.
  var isFloat32: Bool {
    inputs.allSatisfy { $0 == nil || ($0?.dataType == .float32 && $0?.packing == nil) }
      && outputs.allSatisfy { $0.dataType == .float32 }
  }
}
