// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCalibration
import ApusEngine
import ApusTestSupport
import Testing

/// The rows that are taken of a product's left side are what its weights multiply.
@Suite struct PatchSamplerTests {
  /// A product's node in a graph of its own.
  private func node(_ op: any Operator, _ x: [Int], _ weights: Tensor) throws -> Node {
    var builder = GraphBuilder("one")
    let input = builder.input("x", .float32, x.map { Dim($0) })
    let y = try builder.apply(op, [input, builder.constant("w", weights)], name: "product")
    let graph = try builder.finish(outputs: [("y", y)])
    return graph[graph.nodes.first { graph[$0].name == "product" }!]
  }

  /// The mean over all places of the result's square is what the moments say of the weights: with one channel
  /// of weights `w` and every place taken, the sum of squared results is `w^T (sum of x x^T) w`.
  @Test(arguments: [
    ([3, 2, 5, 4], [1, 2, 3, 3], Conv(strides: [2, 1], pads: [1, 0, 1, 1])),
    ([2, 3, 7], [1, 3, 3], Conv(strides: [1], dilations: [2], pads: [2, 2])),
    ([2, 4, 5, 5], [1, 4, 1, 1], Conv(strides: [1, 1])),
    ([1, 1, 5, 5], [1, 1, 4, 4], Conv(strides: [1, 1], autoPad: .sameUpper)),
  ]) func rowsOfConvolutions(x: [Int], weights: [Int], op: Conv) throws {
    try check(op, x, weights, axis: 0)
  }

  @Test(arguments: [[5, 6], [2, 7, 6]]) func rowsOfMatrices(x: [Int]) throws {
    try check(MatMul(), x, [6, 1], axis: 1)
  }

  private func check(_ op: any Operator, _ x: [Int], _ shape: [Int], axis: Int) throws {
    var generator = SeededGenerator(seed: 3)
    let tensor = try generator.tensor(.float32, shape: x)
    let weights = try generator.tensor(.float32, shape: shape)
    var sampler = try #require(PatchSampler(try node(op, x, weights), operand: "x", weights: weights))
    sampler.add(tensor)
    let result = try op.evaluate([.tensor(tensor), .tensor(weights)])[0].tensor!
    #expect(sampler.sums.count == result.count)
    let w = weights.doubles()
    var (place, squares) = (0, 0.0)
    for range in sampler.sums.blocks.ranges {
      // One block only, or its sum would lack what lies between blocks.
      #expect(range.count == w.count)
      for k in range {
        for j in k..<range.upperBound {
          squares += (j == k ? 1 : 2) * w[k] * w[j] * Double(sampler.sums.sums[place])
          place += 1
        }
      }
    }
    let wanted = result.doubles().reduce(0) { $0 + $1 * $1 }
    #expect(abs(squares - wanted) < 1e-4 * wanted, "\(squares) for \(wanted)")
  }

  /// Some rows of each sample, up to a limit; groups side by side; what does not fit is passed over.
  @Test func onlySomeRowsAreTaken() throws {
    var generator = SeededGenerator(seed: 4)
    let weights = try generator.tensor(.float32, shape: [6, 1, 3, 3])
    let op = Conv(strides: [1, 1], pads: [1, 1, 1, 1], group: 6)
    var sampler = try #require(
      PatchSampler(try node(op, [1, 6, 20, 20], weights), operand: "x", weights: weights))
    #expect(sampler.sums.blocks.columnCount == 54)
    for _ in 0..<20 { sampler.add(try generator.tensor(.float32, shape: [5, 6, 20, 20])) }
    #expect(sampler.sums.count == 2048)
    let before = sampler.sums.text
    sampler.add(try generator.tensor(.float32, shape: [1, 5, 20, 20]))
    #expect(sampler.sums.text == before)
    let large = try Tensor(.float32, shape: [1, 1, 12, 12])
    #expect(try PatchSampler(node(Conv(strides: [1, 1]), [1, 1, 12, 12], large), operand: "x", weights: large) == nil)
  }
}
