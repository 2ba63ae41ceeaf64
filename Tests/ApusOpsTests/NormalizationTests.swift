// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

/// Whether all elements are within 1e-5 of the wanted ones.
private func close(_ tensor: Tensor, _ wanted: [Double]) -> Bool {
  let values = tensor.doubles()
  return values.count == wanted.count && zip(values, wanted).allSatisfy { abs($0 - $1) < 1e-5 }
}

@Suite struct NormalizationTests {
  @Test func batchNormalization() throws {
    let x = try f([1, 2, 3, 4], [1, 2, 2])
    let one = try f([1, 1], [2])
    let operands: [RuntimeValue?] = [x, try f([2, 1], [2]), try f([0, 5], [2]), one, one]
    #expect(close(try run(BatchNormalization(epsilon: 0), operands)[0], [0, 2, 7, 8]))
    let trained = try run(
      BatchNormalization(epsilon: 0, momentum: 0.5, trainingMode: true), operands, outputs: 3)
    #expect(close(trained[0], [-2, 2, 4, 6]))
    #expect(close(trained[1], [1.25, 2.25]) && close(trained[2], [0.625, 0.625]))
    #expect(refuses(BatchNormalization(), Array(operands.prefix(4))))
    #expect(refuses(BatchNormalization(), [x] + Array(repeating: try f([1], [1]), count: 4)))
  }

  @Test func layerNormalization() throws {
    let x = try f([1, 3, 2, 6], [2, 2])
    let results = try run(
      LayerNormalization(epsilon: 0), [x, f([1, 2], [2]), f([0, 1], [2])], outputs: 3)
    #expect(close(results[0], [-1, 3, -1, 3]))
    #expect(
      results[1].shape == [2, 1] && close(results[1], [2, 4]) && close(results[2], [1, 0.5]))
    #expect(refuses(LayerNormalization(axis: 2), [x, try f([1, 2], [2])]))
    #expect(refuses(LayerNormalization(), [x, try f([1, 2, 3], [3])]))
    #expect(
      close(
        try run(RMSNormalization(epsilon: 0), [f([3, 4, 0, 5], [2, 2]), f([1, 2], [2])])[0],
        [0.848528, 2.262742, 0, 2.828427]))
    #expect(refuses(RMSNormalization(), [x, try f([1, 2, 3], [3])]))
  }

  @Test func groupNormalization() throws {
    let x = try f([1, 3, 2, 6], [1, 2, 2])
    let scale = try f([1, 2], [2])
    let bias = try f([0, 1], [2])
    #expect(
      close(try run(InstanceNormalization(epsilon: 0), [x, scale, bias])[0], [-1, 1, -1, 3]))
    #expect(
      close(
        try run(GroupNormalization(groups: 2, epsilon: 0), [x, scale, bias])[0], [-1, 1, -1, 3]))
    let whole = try run(GroupNormalization(groups: 1, epsilon: 0), [x, scale, bias])[0]
    #expect(close(whole, [-1.069045, 0, -0.069045, 4.207135]))
    #expect(refuses(GroupNormalization(groups: 3), [x, scale, bias]))
    #expect(refuses(GroupNormalization(groups: 0), [x, scale, bias]))
    #expect(refuses(InstanceNormalization(), [x, try f([1], [1]), bias]))
    #expect(refuses(InstanceNormalization(), [try f([1], [1]), scale, bias]))
    #expect(
      try run(InstanceNormalization(), [f([], [0, 2, 3]), scale, bias])[0].shape == [0, 2, 3])
  }

  @Test func linesAndNeighbours() throws {
    let x = try f([3, 4, 0, 0], [2, 2])
    #expect(close(try run(LpNormalization(), [x])[0], [0.6, 0.8, 0, 0]))
    #expect(close(try run(LpNormalization(axis: 0, p: 1), [x])[0], [1, 1, 0, 0]))
    #expect(refuses(LpNormalization(p: 3), [x]))
    #expect(
      close(
        try run(MeanVarianceNormalization(axes: [1]), [f([1, 3, 5, 5], [2, 2])])[0], [-1, 1, 0, 0]))
    #expect(refuses(MeanVarianceNormalization(), [x]))
    #expect(
      close(
        try run(LRN(size: 3, alpha: 3, beta: 1), [f([1, 2, 3], [1, 3])])[0],
        [1.0 / 6, 2.0 / 15, 3.0 / 14]))
    #expect(refuses(LRN(size: 0), [x]))
  }

  @Test func softmaxes() throws {
    let x = try f([0, 0, 1000, 1000], [2, 2])
    #expect(try run(Softmax(), [x])[0].floats() == [0.5, 0.5, 0.5, 0.5])
    #expect(
      close(
        try run(Softmax(axis: 0), [f([0, 1, 0, 3], [2, 2])])[0], [0.5, 0.119203, 0.5, 0.880797]))
    #expect(close(try run(LogSoftmax(), [x])[0], Array(repeating: -0.693147, count: 4)))
    #expect(try run(Hardmax(), [x])[0].floats() == [1, 0, 1, 0])
    #expect(refuses(Softmax(axis: 2), [x]))
    #expect(refuses(Softmax(), [try i([1], [1])]))
    #expect(try run(Softmax(), [f([], [2, 0])])[0].shape == [2, 0])
    let form = Softmax(axis: 2).permuted(
      by: [0, 2, 1], inputs: InferenceInputs(types: [x.type]))
    #expect((form?.op as? Softmax)?.axis == 1)
  }

  @Test func quantizes() throws {
    let x = try f([0, 0.5, 1.5, -3, 1000], [5])
    #expect(try run(QuantizeLinear(), [x, f([1], [])])[0].integers() == [0, 0, 2, 0, 255])
    let signed = try run(QuantizeLinear(), [x, f([1], []), i([1], [], .int8)])[0]
    #expect(signed.dataType == .int8 && signed.integers() == [1, 1, 3, -2, 127])
    let packed = try run(QuantizeLinear(outputType: .int4), [x, f([1], [])])[0]
    #expect(packed.dataType == .int4 && packed.integers() == [0, 0, 2, -3, 7])
    let perAxis = try run(
      QuantizeLinear(axis: 0), [f([2, 2, 2, 2], [2, 2]), f([1, 2], [2])])[0]
    #expect(perAxis.integers() == [2, 2, 1, 1])
    let blocks = try run(
      DequantizeLinear(axis: 1, blockSize: 2),
      [i([1, 2, 3], [1, 3], .int8), f([10, 100], [1, 2])])[0]
    #expect(blocks.floats() == [10, 20, 300])
    let back = try run(
      DequantizeLinear(), [i([1, 3], [2], .uint8), f([0.5], []), i([2], [], .uint8)])[0]
    #expect(back.floats() == [-0.5, 0.5])
    #expect(refuses(QuantizeLinear(axis: 0), [x, try f([1, 2], [2])]))
    #expect(refuses(QuantizeLinear(axis: 0, blockSize: .max), [x, try f([1, 2], [2])]))
    #expect(refuses(DequantizeLinear(), [x, try i([1], [])]))
    let dynamic = try run(
      DynamicQuantizeLinear(), [f([0, 2, -3, -2.5, 1.34, 0.5], [6])], outputs: 3)
    #expect(dynamic[0].integers() == [153, 255, 0, 26, 221, 179] && dynamic[2].integers() == [153])
  }

  @Test func integerProducts() throws {
    let a = try i([11, 7, 3, 10, 6, 2, 9, 5, 1, 8, 4, 0], [4, 3], .uint8)
    let b = try i([1, 4, 2, 5, 3, 6], [3, 2], .uint8)
    let product = try run(MatMulInteger(), [a, b, i([12], [1], .uint8), i([0], [1], .uint8)])[0]
    #expect(product.integers() == [-38, -83, -44, -98, -50, -113, -56, -128])
    let image = try i([2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 1, 3, 3], .uint8)
    let kernel = try i([1, 1, 1, 1], [1, 1, 2, 2], .uint8)
    #expect(
      try run(ConvInteger(), [image, kernel, i([1], [], .uint8)])[0].integers() == [12, 16, 24, 28])
    let half = try f([0.5], [])
    let zero = try i([1], [], .uint8)
    let quantised = try run(
      QLinearConv(),
      [image, half, zero, kernel, half, i([0], [], .uint8), half, zero, i([2], [1], .int32)])[0]
    // (12 + 2) * 0.25 / 0.5 + 1
    #expect(quantised.integers() == [8, 10, 14, 16])
    let row = try i([3, 5], [1, 2], .int8)
    let column = try i([2, 4], [2, 1], .int8)
    let none = try i([0], [], .int8)
    let linear = try run(
      QLinearMatMul(), [row, half, none, column, half, none, f([0.25], []), none])[0]
    #expect(linear.integers() == [26])
    #expect(refuses(ConvInteger(), [image, kernel, try i([1, 2], [2], .uint8)]))
    #expect(refuses(QLinearMatMul(), [row, half, none, column, half, none, half]))
    #expect(refuses(QLinearConv(), [image, half, zero]))
  }

  @Test(arguments: [true, false]) func responseNormalizationCanBeSampled(isLast: Bool) throws {
    let op = LRN(size: 3, alpha: 0.5, beta: 0.75, bias: 1.5, channelsLast: isLast)
    let values = (0..<120).map { Float($0 % 17) - 8 }
    let x = try Tensor(values, shape: [2, 5, 3, 4])
    let whole = try #require(try op.evaluate([.tensor(x)])[0].tensor).doubles()
    let samples = try op.evaluateSamples([x], at: Array(0..<120))
    for (a, b) in zip(whole, samples) { #expect(abs(a - b) < 1e-6) }
    #expect(throws: ApusError.self) { try op.evaluateSamples([x], at: [120]) }
  }
}
