// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

/// `LRN` over channels in channels-last order with the exponent 3/4, taken by square roots:
/// `s^(3/4) = sqrt(s) * sqrt(sqrt(s))`.
struct LRNTactic: NativeTactic {
  let name = "cpu.lrn.f32.channels"
  let pool: ThreadPool

  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal> {
    guard let op = problem.op as? LRN else { return .failure("not an LRN") }
    guard op.isChannelsLast, op.beta == 0.75, problem.isFloat32,
      let shape = problem.inputs[0]?.shape, let channels = shape.last, channels > 0
    else { return .failure("not float32 in channels-last order with the exponent 3/4") }
    let rows = shape.dropLast().reduce(1, *)
    let perTask = max(1, 16384 / channels)
    let (size, bias, factor) = (op.size, Float(op.bias), Float(op.alpha / Double(op.size)))
    return .success(
      NativeLoop(taskCount: (rows + perTask - 1) / perTask) { operands, task in
        for row in (task * perTask)..<min(rows, (task + 1) * perTask) {
          Self.row(
            operands.floats(0) + row * channels, operands.mutableFloats(1) + row * channels,
            channels, size, bias, factor)
        }
      })
  }

  private static func row(
    _ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, _ channels: Int, _ size: Int,
    _ bias: Float, _ factor: Float
  ) {
    let before = (size - 1) / 2
    let after = size - 1 - before
    let last = channels - after
    for c in 0..<min(before, channels) { element(x, y, channels, c, before, after, bias, factor) }
    var c = before
    while c + 8 <= last {
      var sum = SIMD8<Float>(repeating: 0)
      for d in (c - before)...(c + after) {
        let v = UnsafeRawPointer(x + d).loadUnaligned(as: SIMD8<Float>.self)
        sum += v * v
      }
      let s = sum * factor + SIMD8(repeating: bias)
      let root = s.squareRoot()
      let v = UnsafeRawPointer(x + c).loadUnaligned(as: SIMD8<Float>.self)
      UnsafeMutableRawPointer(y + c).storeBytes(
        of: v / (root * root.squareRoot()), as: SIMD8<Float>.self)
      c += 8
    }
    while c < channels {
      element(x, y, channels, c, before, after, bias, factor)
      c += 1
    }
  }

  private static func element(
    _ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, _ channels: Int, _ c: Int,
    _ before: Int, _ after: Int, _ bias: Float, _ factor: Float
  ) {
    var sum: Float = 0
    for d in max(0, c - before)...min(channels - 1, c + after) { sum += x[d] * x[d] }
    let s = sum * factor + bias
    y[c] = x[c] / (s.squareRoot() * s.squareRoot().squareRoot())
  }
}
