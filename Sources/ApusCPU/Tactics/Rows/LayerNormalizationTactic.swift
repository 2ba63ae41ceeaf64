// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

/// `LayerNormalization` over the last axes, a few rows a task: two passes over a row that stays in the
/// first-level cache.
struct LayerNormalizationTactic: NativeTactic {
  let name = "cpu.layernorm.f32.rows"
  let pool: ThreadPool

  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal> {
    guard let op = problem.op as? LayerNormalization else {
      return .failure("not a LayerNormalization")
    }
    guard problem.isFloat32, problem.outputs.count == 1, let shape = problem.inputs[0]?.shape else {
      return .failure("not float32, or statistics are results, too")
    }
    let axis = op.axis < 0 ? op.axis + shape.count : op.axis
    let width = shape[axis...].reduce(1, *)
    let hasBias = problem.inputs.count > 2 && problem.inputs[2] != nil
    guard width > 0, problem.inputs[1]?.count == width,
      !hasBias || problem.inputs[2]?.count == width
    else { return .failure("scale or bias do not have the row's size") }
    let rows = shape[..<axis].reduce(1, *)
    let epsilon = Float(op.epsilon)
    let result = problem.inputs.count
    let perTask = max(1, 8192 / width)
    return .success(
      NativeLoop(taskCount: (rows + perTask - 1) / perTask) { operands, task in
        let scale = operands.floats(1)
        let bias = hasBias ? operands.floats(2) : nil
        for row in (task * perTask)..<min(rows, (task + 1) * perTask) {
          Self.row(
            operands.floats(0) + row * width, operands.mutableFloats(result) + row * width, width,
            scale, bias, epsilon)
        }
      })
  }

  private static func row(
    _ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, _ width: Int,
    _ scale: UnsafePointer<Float>, _ bias: UnsafePointer<Float>?, _ epsilon: Float
  ) {
    let mean = RowSum.sum(x, width) / Float(width)
    let variance = RowSum.squares(x, width, mean) / Float(width)
    let inverse = 1 / (variance + epsilon).squareRoot()
    if let bias {
      for i in 0..<width { y[i] = (x[i] - mean) * inverse * scale[i] + bias[i] }
    } else {
      for i in 0..<width { y[i] = (x[i] - mean) * inverse * scale[i] }
    }
  }
}

/// Sums of a row in eight parts: vectors without reordering what the source says, and less rounding.
enum RowSum {
  @inline(__always)
  static func sum(_ x: UnsafePointer<Float>, _ count: Int) -> Float {
    var parts = SIMD8<Float>(repeating: 0)
    var i = 0
    while i + 8 <= count {
      parts += UnsafeRawPointer(x + i).loadUnaligned(as: SIMD8<Float>.self)
      i += 8
    }
    var total = parts.sum()
    while i < count {
      total += x[i]
      i += 1
    }
    return total
  }

  @inline(__always)
  static func squares(_ x: UnsafePointer<Float>, _ count: Int, _ mean: Float) -> Float {
    var parts = SIMD8<Float>(repeating: 0)
    let centre = SIMD8<Float>(repeating: mean)
    var i = 0
    while i + 8 <= count {
      let d = UnsafeRawPointer(x + i).loadUnaligned(as: SIMD8<Float>.self) - centre
      parts += d * d
      i += 8
    }
    var total = parts.sum()
    while i < count {
      total += (x[i] - mean) * (x[i] - mean)
      i += 1
    }
    return total
  }
}
