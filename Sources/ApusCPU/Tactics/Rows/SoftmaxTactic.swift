// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// `Softmax` over the last axis, a few rows a task.
struct SoftmaxTactic: NativeTactic {
  let name = "cpu.softmax.f32.rows"
  let pool: ThreadPool

  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal> {
    guard let op = problem.op as? Softmax else { return .failure("not a Softmax") }
    guard problem.isFloat32, let shape = problem.inputs[0]?.shape, let width = shape.last,
      width > 0
    else { return .failure("not float32, or empty") }
    guard op.axis == -1 || op.axis == shape.count - 1 else {
      return .failure("not over the last axis")
    }
    let rows = shape.dropLast().reduce(1, *)
    let perTask = max(1, 4096 / width)
    return .success(
      NativeLoop(taskCount: (rows + perTask - 1) / perTask) { operands, task in
        let x = operands.floats(0)
        let y = operands.mutableFloats(1)
        for row in (task * perTask)..<min(rows, (task + 1) * perTask) {
          Self.row(x + row * width, y + row * width, width)
        }
      })
  }

  private static func row(_ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, _ width: Int)
  {
    var largest = x[0]
    for i in 1..<max(1, width) { largest = x[i] > largest ? x[i] : largest }
    for i in 0..<width { y[i] = expf(x[i] - largest) }
    let scale = 1 / RowSum.sum(y, width)
    for i in 0..<width { y[i] *= scale }
  }
}
