// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus

/// A small network around one kernel.
struct Kernel: Sendable {
  let name: String
  /// What limits it: `compute` is compared with the fastest direct product of the run in its precision, `memory`
  /// with copying.
  let bound: Bound
  /// The kernel that goes over as many numbers and computes next to nothing, where one is measured: `memory` is
  /// then compared with it, since the same caches hold its numbers.
  var twin: String?
  let precisions: [BuilderConfiguration.Precision]
  let graph: @Sendable () throws(ApusError) -> Graph

  enum Bound: String, Sendable {
    case compute, memory
  }
}

extension Kernel {
  private static let narrow: [BuilderConfiguration.Precision] = [.fp32, .fp16, .bf16, .int8]

  /// The kernels of common networks at the sizes they have there.
  static let all: [Kernel] =
    products + convolutions + rectifiers + depthwise + [
      pointwise("gelu 128x3072", [128, 3072]) { b, x throws(ApusError) in try b.apply(Gelu(), [x]) },
      pointwise("softmax 12x128x128", [12, 128, 128]) { b, x throws(ApusError) in
        try b.apply(Softmax(axis: -1), [x])
      },
      pointwise("max pool 3x3/2 64@112", [1, 64, 112, 112]) { b, x throws(ApusError) in
        try b.apply(MaxPool(PoolAttributes(kernel: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1])), [x])
      },
      pointwise("mean 2048@7", [1, 2048, 7, 7]) { b, x throws(ApusError) in
        try b.apply(Reduce(function: .mean, axes: [2, 3], keepDims: true), [x])
      },
      pointwise("transpose 128x12x64", [128, 12, 64]) { b, x throws(ApusError) in
        try b.apply(Transpose(permutation: [1, 0, 2]), [x])
      },
    ]

  private static let products = [
    (1, 4096, 4096), (128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1024, 1024, 1024),
  ].map { m, n, k in
    Kernel(name: "product \(m)x\(n)x\(k)", bound: m == 1 ? .memory : .compute, precisions: narrow) {
      () throws(ApusError) in
      var b = GraphBuilder("product")
      let x = b.input("x", .float32, [Dim(m), Dim(k)])
      let w = b.constant("w", try weights([k, n]))
      return try b.finish(outputs: [("y", try b.apply(MatMul(), [x, w]))])
    }
  }

  private static let convolutions = [
    (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1),
    (512, 512, 7, 3, 1), (64, 256, 56, 1, 1), (512, 128, 28, 1, 1), (1024, 256, 14, 1, 1),
    (2048, 512, 7, 1, 1), (24, 144, 56, 1, 1), (96, 24, 56, 1, 1),
  ].map { inputs, outputs, size, kernel, stride in
    conv(inputs, outputs, size, kernel, stride, groups: 1, narrow, .compute)
  }

  private static let depthwiseSizes = [
    (32, 112, 1), (96, 112, 2), (144, 56, 1), (64, 28, 1), (128, 14, 1), (384, 14, 1), (960, 7, 1),
  ]

  private static let depthwise = depthwiseSizes.map { channels, size, stride in
    var kernel = conv(channels, channels, size, 3, stride, groups: channels, [.fp32, .bf16], .memory)
    kernel.twin = "relu \(channels)@\(size)"
    return kernel
  }

  /// Only a corner of the result leaves the network: memory for all of it would be new in every run.
  private static let rectifiers = depthwiseSizes.map { channels, size, _ in
    pointwise("relu \(channels)@\(size)", [1, channels, size, size]) { b, x throws(ApusError) in
      let y = try b.apply(Relu(), [x])
      let ends = [("starts", 0), ("ends", 1), ("axes", 2)]
      var operands = [y]
      for (name, value) in ends { operands.append(b.constant(name, try Tensor([Int64(value)], .int64, shape: [1]))) }
      return try b.apply(Slice(), operands)
    }
  }

  private static func conv(
    _ inputs: Int, _ outputs: Int, _ size: Int, _ kernel: Int, _ stride: Int, groups: Int,
    _ precisions: [BuilderConfiguration.Precision], _ bound: Bound
  ) -> Kernel {
    let kind = groups == 1 ? "conv" : "depthwise"
    let name = "\(kind) \(inputs)-\(outputs)@\(size) \(kernel)x\(kernel)/\(stride)"
    return Kernel(name: name, bound: bound, precisions: precisions) { () throws(ApusError) in
      var b = GraphBuilder("conv")
      let x = b.input("x", .float32, [1, Dim(inputs), Dim(size), Dim(size)])
      let w = b.constant("w", try weights([outputs, inputs / groups, kernel, kernel]))
      let pad = kernel / 2
      let y = try b.apply(
        Conv(strides: [stride, stride], pads: [pad, pad, pad, pad], group: groups), [x, w])
      return try b.finish(outputs: [("y", try b.apply(Relu(), [y]))])
    }
  }

  private static func pointwise(
    _ name: String, _ shape: [Int],
    _ body: @escaping @Sendable (inout GraphBuilder, ValueID) throws(ApusError) -> ValueID
  ) -> Kernel {
    Kernel(name: name, bound: .memory, precisions: [.fp32]) { () throws(ApusError) in
      var b = GraphBuilder("pointwise")
      let x = b.input("x", .float32, shape.map { Dim($0) })
      return try b.finish(outputs: [("y", try body(&b, x))])
    }
  }

  private static func weights(_ shape: [Int]) throws(ApusError) -> Tensor {
    let count = shape.reduce(1, *)
    return try Tensor((0..<count).map { Float($0 % 251) / 251 - 0.5 }, shape: shape)
  }
}
