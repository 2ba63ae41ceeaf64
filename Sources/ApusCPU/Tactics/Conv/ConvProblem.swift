// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// A channels-last convolution of one or two spatial axes with constant weights, as the kernels see it.
struct ConvProblem {
  let anchored: AnchoredProblem
  let shape: ConvShape
  let types: ProductTypes
  let padValue: Int
  /// Elements from one pixel of the input to the next, if there are gaps between them.
  let inputPitch: Int?
  /// The same for the result.
  let resultPitch: Int?

  /// Reads a problem.
  ///
  /// - Returns: The convolution, or the reason why it is none that the generated kernels take.
  static func read(_ problem: Problem) -> Result<ConvProblem, Refusal> {
    let anchored = AnchoredProblem(problem)
    guard let op = anchored.anchor as? Conv else { return .failure("not a convolution") }
    if let reason = anchored.refusal { return .failure(Refusal(reason)) }
    guard op.isChannelsLast else { return .failure("channels are not last") }
    guard let types = anchored.types else {
      return .failure("no kernel for these element types")
    }
    guard anchored.inputs.count == 2, let x = anchored.inputs[0], let w = anchored.inputs[1],
      w.constant != nil
    else { return .failure("the weights are not constant, or there is a bias operand") }
    guard x.shape.count == 3 || x.shape.count == 4 else {
      return .failure("\(x.shape.count - 2) spatial axes")
    }
    guard problem.inputs.dropFirst().allSatisfy({ $0?.pitch == nil }) else {
      return .failure("rows of an extra operand do not follow each other")
    }
    guard problem.outputs[0].count > 0, x.count > 0, w.count > 0 else {
      return .failure("empty operands")
    }
    guard let shape = shape(op, x.shape, w.shape, problem.outputs[0].shape) else {
      return .failure("sizes that the kernels do not take")
    }
    return .success(
      ConvProblem(anchored: anchored, shape: shape, types: types, padValue: op.padValue,
        inputPitch: x.pitch, resultPitch: problem.outputs[0].pitch))
  }

  /// A reason, as an error so that `Result` can carry it.
  struct Refusal: Error, ExpressibleByStringInterpolation {
    let reason: String
    init(_ reason: String) { self.reason = reason }
    init(stringLiteral value: String) { reason = value }
  }

  private static func shape(_ op: Conv, _ x: [Int], _ w: [Int], _ y: [Int]) -> ConvShape? {
    let spatial = x.count - 2
    let input = Array(x[1..<(1 + spatial)])
    let kernel = Array(w[0..<spatial])
    guard let window = try? op.window(input: input, kernel: kernel) else { return nil }
    let strides = op.strides.isEmpty ? Array(repeating: 1, count: spatial) : op.strides
    let dilations = op.dilations.isEmpty ? Array(repeating: 1, count: spatial) : op.dilations
    // One spatial axis is the width of an image one pixel high.
    func two(_ values: [Int], _ missing: Int) -> (Int, Int) {
      spatial == 2 ? (values[0], values[1]) : (missing, values[0])
    }
    let (inHeight, inWidth) = two(input, 1)
    let (outHeight, outWidth) = two(Array(y[1..<(1 + spatial)]), 1)
    let (kernelHeight, kernelWidth) = two(kernel, 1)
    let (strideH, strideW) = two(strides, 1)
    let (dilationH, dilationW) = two(dilations, 1)
    let (padTop, padLeft) = two(window.begin, 0)
    return ConvShape(
      batch: x[0], inHeight: inHeight, inWidth: inWidth, inChannels: x[x.count - 1],
      outHeight: outHeight, outWidth: outWidth, outChannels: y[y.count - 1],
      kernelHeight: kernelHeight, kernelWidth: kernelWidth, strideHeight: strideH, strideWidth: strideW,
      dilationHeight: dilationH, dilationWidth: dilationW, padTop: padTop, padLeft: padLeft,
      groups: op.group)
  }
}

extension ConvShape {
  /// Whether every channel has a kernel of its own.
  var isDepthwise: Bool { groups == inChannels && groups == outChannels && groups > 1 }

  /// The depth of the matrix product that one group is.
  var depth: Int { kernelHeight * kernelWidth * (inChannels / max(1, groups)) }
}
