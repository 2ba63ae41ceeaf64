// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusOps

/// Maximum and average pooling over two spatial axes in channels-last order: one result row a task,
/// vectors over the channels.
struct PoolTactic: NativeTactic {
  let name = "cpu.pool.f32.channels"
  let pool: ThreadPool

  private struct Shape: Sendable {
    let window: Window
    let input: [Int]
    let channels: Int
    let isMaximum: Bool
    let countsPadding: Bool
  }

  func loop(_ problem: Problem) -> Result<NativeLoop, NativeRefusal> {
    let attributes: PoolAttributes
    var isMaximum = true
    var countsPadding = false
    switch problem.op {
    case let op as MaxPool: attributes = op.pool
    case let op as AveragePool:
      attributes = op.pool
      isMaximum = false
      countsPadding = op.countIncludePad
    default: return .failure("not a pooling operator")
    }
    guard problem.isFloat32, problem.outputs.count == 1, attributes.channelsLast,
      let shape = problem.inputs[0]?.shape, shape.count == 4, problem.outputs[0].count > 0,
      let window = try? attributes.window(input: Array(shape[1...2]))
    else { return .failure("not float32 over two spatial axes in channels-last order") }
    let pooled = Shape(
      window: window, input: Array(shape[1...2]), channels: shape[3], isMaximum: isMaximum,
      countsPadding: countsPadding)
    return .success(
      NativeLoop(taskCount: shape[0] * window.output[0]) { operands, task in
        Self.row(pooled, operands.floats(0), operands.mutableFloats(1), task)
      })
  }

  private static func row(
    _ shape: Shape, _ x: UnsafePointer<Float>, _ y: UnsafeMutablePointer<Float>, _ task: Int
  ) {
    let window = shape.window
    let (height, width) = (shape.input[0], shape.input[1])
    let channels = shape.channels
    let (image, row) = task.quotientAndRemainder(dividingBy: window.output[0])
    let top = row * window.strides[0] - window.begin[0]
    for column in 0..<window.output[1] {
      let left = column * window.strides[1] - window.begin[1]
      let target = y + (task * window.output[1] + column) * channels
      for c in 0..<channels { target[c] = shape.isMaximum ? -.infinity : 0 }
      var inside = 0
      var padded = 0
      for a in 0..<window.kernel[0] {
        let h = top + a * window.dilations[0]
        for b in 0..<window.kernel[1] {
          let w = left + b * window.dilations[1]
          if h < height + window.end[0], w < width + window.end[1] { padded += 1 }
          guard h >= 0, h < height, w >= 0, w < width else { continue }
          inside += 1
          let source = x + ((image * height + h) * width + w) * channels
          if shape.isMaximum {
            for c in 0..<channels { target[c] = source[c] > target[c] ? source[c] : target[c] }
          } else {
            for c in 0..<channels { target[c] += source[c] }
          }
        }
      }
      guard !shape.isMaximum else { continue }
      let scale = 1 / Float(shape.countsPadding ? padded : inside)
      for c in 0..<channels { target[c] *= scale }
    }
  }
}
