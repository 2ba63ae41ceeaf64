// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusKernel
import ApusOps

/// Maximum or average pooling over one or two spatial axes in channels-last order, as the kernels see it.
struct PoolProblem {
  /// Sizes, with as many groups as channels.
  let shape: ConvShape
  let mode: WindowPlan.Mode

  /// Reads a problem; nil when it is none that the generated kernels take.
  static func read(_ problem: Problem, isa: ISA) -> PoolProblem? {
    let attributes: PoolAttributes
    let mode: WindowPlan.Mode
    switch problem.op {
    case let op as MaxPool:
      attributes = op.pool
      mode = .maximum
    case let op as AveragePool:
      attributes = op.pool
      // Windows that leave the padded input divide by fewer places.
      guard !op.countIncludePad || !op.pool.ceilMode else { return nil }
      mode = op.countIncludePad ? .averageOver(op.pool.kernel.reduce(1, *)) : .average
    default: return nil
    }
    let type = problem.inputs.first??.dataType
    let isCompared = mode == .maximum && (type == .uint8 || type == .int8)
    guard isCompared || type == .float32 || type == .bfloat16, let type,
      ElementAccess.supports(type, isa), problem.inputs.count == 1,
      problem.outputs.count == 1, attributes.channelsLast,
      let x = problem.inputs[0]?.shape, x.count == 3 || x.count == 4,
      problem.outputs[0].count > 0,
      let window = try? attributes.window(input: Array(x[1..<(x.count - 1)]))
    else { return nil }
    func two(_ values: [Int], _ missing: Int) -> (Int, Int) {
      values.count == 2 ? (values[0], values[1]) : (missing, values[0])
    }
    let (inHeight, inWidth) = two(Array(x[1..<(x.count - 1)]), 1)
    let (outHeight, outWidth) = two(window.output, 1)
    let (kernelHeight, kernelWidth) = two(window.kernel, 1)
    let (strideHeight, strideWidth) = two(window.strides, 1)
    let (dilationHeight, dilationWidth) = two(window.dilations, 1)
    let (padTop, padLeft) = two(window.begin, 0)
    let channels = x[x.count - 1]
    return PoolProblem(
      shape: ConvShape(
        batch: x[0], inHeight: inHeight, inWidth: inWidth, inChannels: channels,
        outHeight: outHeight, outWidth: outWidth, outChannels: channels,
        kernelHeight: kernelHeight, kernelWidth: kernelWidth, strideHeight: strideHeight,
        strideWidth: strideWidth, dilationHeight: dilationHeight, dilationWidth: dilationWidth,
        padTop: padTop, padLeft: padLeft, groups: channels), mode: mode)
  }
}
