// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor

/// Small networks with seeded weights, made with the builder, for tests.
public enum SmallNetworks {
  /// Seeded floats in [-scale, scale).
  public static func weights(_ shape: [Int], seed: UInt64, scale: Float = 0.5) throws -> Tensor {
    var generator = SeededGenerator(seed: seed)
    let tensor = try generator.tensor(.float32, shape: shape)
    return try Tensor(tensor.floats().map { $0 * scale }, shape: shape)
  }

  /// Convolution, batch normalisation, activation, a residual block, pooling and a classifier.
  public static func residual() throws -> Graph {
    var b = GraphBuilder("residual")
    let x = b.input("x", .float32, [.symbol("N"), 3, 13, 11])
    let w1 = b.constant("w1", try weights([8, 3, 3, 3], seed: 1))
    var y = try b.apply(Conv(strides: [1, 1], pads: [1, 1, 1, 1]), [x, w1])
    let parameters = try (2..<6).map { seed in
      b.constant(
        "bn\(seed)",
        try Tensor(
          try weights([8], seed: UInt64(seed)).floats().map { seed == 5 ? abs($0) + 0.5 : $0 },
          shape: [8]))
    }
    y = try b.apply(BatchNormalization(), [y] + parameters.map { Optional($0) })
    let first = try b.apply(Relu(), [y])
    let w2 = b.constant("w2", try weights([8, 8, 1, 1], seed: 7))
    let bias = b.constant("bias", try weights([8], seed: 8))
    y = try b.apply(Conv(), [first, w2, bias])
    y = try b.apply(Add(), [y, first])
    y = try b.apply(Relu(), [y])
    y = try b.apply(MaxPool(PoolAttributes(kernel: [2, 2], strides: [2, 2])), [y])
    y = try b.apply(Reduce(function: .mean, axes: [2, 3], keepDims: true), [y])
    y = try b.apply(Flatten(axis: 1), [y])
    let w3 = b.constant("w3", try weights([8, 5], seed: 9))
    y = try b.apply(MatMul(), [y, w3])
    y = try b.apply(Softmax(axis: -1), [y])
    return try b.finish(outputs: [("y", y)])
  }

  /// A branch on data, then a product: the plan is cut.
  public static func branching() throws -> Graph {
    func branch(_ name: String, _ op: any Operator) throws -> Graph {
      var body = GraphBuilder(name)
      let x = body.input("x", .float32, [.symbol("N"), 4])
      let y = try body.apply(op, [x])
      return try body.finish(outputs: [("y", y)])
    }
    var b = GraphBuilder("branching")
    let condition = b.input("condition", .bool, [2])
    let x = b.input("x", .float32, [.symbol("N"), 4])
    let pick = try b.apply(
      Reduce(function: .max, axes: [0], keepDims: false),
      [try b.apply(Cast(to: .int32), [condition])])
    let test = try b.apply(Cast(to: .bool), [pick])
    let y = try b.apply(
      If(thenBranch: try branch("then", Relu()), elseBranch: try branch("else", Neg())), [test, x])
    let w = b.constant("w", try weights([4, 3], seed: 3))
    let z = try b.apply(MatMul(), [y, w])
    return try b.finish(outputs: [("z", z)])
  }
}
