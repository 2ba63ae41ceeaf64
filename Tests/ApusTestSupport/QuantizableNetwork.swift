// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor

/// A small classifier whose convolutions all have kernels on bytes, and inputs for it.
public enum QuantizableNetwork {
  /// Eight convolutions with residual blocks, pooling and concatenation, then a matrix product.
  public static func graph() throws -> Graph {
    var b = GraphBuilder("classifier")
    func conv(
      _ x: ValueID, _ name: String, _ outputs: Int, _ inputs: Int, _ size: Int, rectified: Bool = true
    ) throws -> ValueID {
      let seed = UInt64(name.utf8.reduce(0) { $0 &* 31 &+ Int($1) })
      let scale = (3 / Float(inputs * size * size)).squareRoot()
      let w = b.constant("\(name).w", try SmallNetworks.weights([outputs, inputs, size, size], seed: seed, scale: scale))
      let bias = b.constant("\(name).b", try SmallNetworks.weights([outputs], seed: seed + 1, scale: 0.1))
      let pad = size / 2
      let y = try b.apply(Conv(strides: [1, 1], pads: [pad, pad, pad, pad]), [x, w, bias], name: name)
      return rectified ? try b.apply(Relu(), [y], name: "\(name).relu") : y
    }
    let x = b.input("x", .float32, [.symbol("N"), 4, 12, 12])
    var y = try conv(x, "stem", 16, 4, 3)
    for block in ["one", "two"] {
      let inner = try conv(y, "\(block).a", 16, 16, 3)
      let outer = try conv(inner, "\(block).b", 16, 16, 1, rectified: false)
      y = try b.apply(Relu(), [try b.apply(Add(), [outer, y], name: "\(block).add")])
    }
    y = try b.apply(MaxPool(PoolAttributes(kernel: [2, 2], strides: [2, 2])), [y], name: "pool")
    let left = try conv(y, "left", 8, 16, 1)
    let right = try conv(y, "right", 24, 16, 3)
    y = try b.apply(Concat(axis: 1), [left, right], name: "concat")
    y = try conv(y, "last", 32, 32, 1)
    y = try b.apply(Reduce(function: .mean, axes: [2, 3], keepDims: true), [y], name: "mean")
    y = try b.apply(Flatten(axis: 1), [y], name: "flat")
    let w = b.constant("classes.w", try SmallNetworks.weights([32, 10], seed: 99))
    y = try b.apply(MatMul(), [y, w], name: "classes")
    return try b.finish(outputs: [("y", y)])
  }

  /// The names of its products.
  public static let products = [
    "stem", "one.a", "one.b", "two.a", "two.b", "left", "right", "last", "classes",
  ]

  /// Seeded inputs of some samples.
  public static func batch(_ count: Int, seed: UInt64) throws -> [String: Tensor] {
    var generator = SeededGenerator(seed: seed)
    return ["x": try generator.tensor(.float32, shape: [count, 4, 12, 12])]
  }
}
