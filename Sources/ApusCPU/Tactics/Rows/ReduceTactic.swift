// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

/// `Reduce` (sum, mean, maximum, minimum) over neighbouring axes, seen as `[outer, reduced, inner]`:
/// rows when nothing is inside (last axis), whole vectors of `inner` otherwise (global pooling in
/// channels-last order).
struct ReduceTactic: NativeTactic {
  let name = "cpu.reduce.f32.rows"
  let pool: ThreadPool

  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal> {
    guard let op = problem.op as? Reduce else { return .failure("not a Reduce") }
    guard problem.isFloat32, problem.inputs.count == 1, let shape = problem.inputs[0]?.shape,
      problem.inputs[0]!.count > 0
    else { return .failure("not float32, empty, or with axes as an operand") }
    guard let axes = Self.axes(op, rank: shape.count), let first = axes.min(),
      let last = axes.max(), last - first + 1 == axes.count
    else { return .failure("the axes are not neighbours") }
    let outer = shape[..<first].reduce(1, *)
    let reduced = shape[first...last].reduce(1, *)
    let inner = shape[(last + 1)...].reduce(1, *)
    switch op.function {
    case .sum: return .success(Self.sums(outer, reduced, inner, scale: 1))
    case .mean: return .success(Self.sums(outer, reduced, inner, scale: 1 / Float(reduced)))
    case .max: return .success(Self.extremes(outer, reduced, inner) { $0 > $1 ? $0 : $1 })
    case .min: return .success(Self.extremes(outer, reduced, inner) { $0 < $1 ? $0 : $1 })
    default: return .failure("the function has no loop")
    }
  }

  private static func axes(_ op: Reduce, rank: Int) -> Set<Int>? {
    guard let axes = op.axes, !axes.isEmpty else {
      return op.noopWithEmptyAxes ? nil : Set(0..<rank)
    }
    return Set(axes.map { $0 < 0 ? $0 + rank : $0 })
  }

  private static func sums(_ outer: Int, _ reduced: Int, _ inner: Int, scale: Float) -> NativeLoop {
    NativeLoop(taskCount: outer) { operands, task in
      let x = operands.floats(0) + task * reduced * inner
      let y = operands.mutableFloats(1) + task * inner
      guard inner > 1 else {
        y[0] = RowSum.sum(x, reduced) * scale
        return
      }
      for i in 0..<inner { y[i] = x[i] }
      for r in 1..<max(1, reduced) {
        let row = x + r * inner
        for i in 0..<inner { y[i] += row[i] }
      }
      for i in 0..<inner { y[i] *= scale }
    }
  }

  private static func extremes(
    _ outer: Int, _ reduced: Int, _ inner: Int,
    _ better: @escaping @Sendable (Float, Float) -> Float
  ) -> NativeLoop {
    NativeLoop(taskCount: outer) { operands, task in
      let x = operands.floats(0) + task * reduced * inner
      let y = operands.mutableFloats(1) + task * inner
      for i in 0..<inner { y[i] = x[i] }
      for r in 1..<max(1, reduced) {
        let row = x + r * inner
        for i in 0..<inner {
          // A NaN on either side stays.
          y[i] = row[i].isNaN || y[i].isNaN ? .nan : better(row[i], y[i])
        }
      }
    }
  }
}
