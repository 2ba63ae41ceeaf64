// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Kernels leave out what keeps results in the range of integers where constants show that it is not needed.
@Suite struct StepRangeTests {
  private static let (channels, outputs) = (32, 80)

  /// Two convolutions of the same sizes whose results are rounded in steps of these sizes.
  private func network(_ steps: [Float]) throws -> Graph {
    var b = GraphBuilder("steps")
    let (scale, zero) = (b.constant("s", try .scalar(0.02, .float32)), b.constant("z", try .scalar(0, .uint8)))
    let weights = try SmallNetworks.weights([Self.outputs, Self.channels, 1, 1], seed: 4)
    let bytes = try Tensor(weights.doubles().map { ($0 * 200).rounded() }, .int8, shape: weights.shape)
    var results: [(String, ValueID)] = []
    for (index, step) in steps.enumerated() {
      // Of one input both would be one convolution.
      let x = b.input("x\(index)", .uint8, [1, Dim(Self.channels), 6, 5])
      let input = try b.apply(DequantizeLinear(), [x, scale, zero])
      let w = try b.apply(
        DequantizeLinear(),
        [
          b.constant("w\(index)", bytes), b.constant("ws\(index)", try .scalar(0.01, .float32)),
          b.constant("wz\(index)", try .scalar(0, .int8)),
        ])
      let y = try b.apply(Relu(), [try b.apply(Conv(), [input, w])])
      results.append(
        (
          "y\(index)",
          try b.apply(QuantizeLinear(), [y, b.constant("t\(index)", try .scalar(Double(step), .float32)), zero])
        ))
    }
    return try b.finish(outputs: results)
  }

  @Test func resultsBeyondIntegersSaturate() throws {
    guard try Builder(BuilderConfiguration()).device().fastTypes.contains(.int8) else { return }
    // The second one's steps are up to 10^12, far beyond 32 bits, and its kernel must be another one.
    let graph = try network([0.05, 1e-9])
    var generator = SeededGenerator(seed: 3)
    let x = try generator.sample(.uint8, shape: [1, Self.channels, 6, 5])
    let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x), .tensor(x)])
    for level in [0, 1] {
      var configuration = BuilderConfiguration()
      configuration.level = level
      configuration.threadCount = 1
      let engine = try Builder(configuration).build(graph)
      let got = try engine.makeContext().run(["x0": x, "x1": x])
      for (index, name) in graph.outputNames.enumerated() {
        let (a, e) = (try #require(got[name]).doubles(), try #require(expected[index].tensor).doubles())
        // The reference sums in single precision, so what is next to nothing is some of the tiny steps.
        var worst = 0.0
        for (value, wanted) in zip(a, e) where index == 0 || wanted == 0 || wanted == 255 {
          worst = max(worst, abs(value - wanted))
        }
        #expect(worst <= (index == 0 ? 1.0 : 0.0), "\(name) is off by \(worst)")
        #expect(e.contains(0) && (index == 0 || e.contains(255)))
      }
      let problems = Set(try engine.kernels().map(\.problem).filter { $0.contains("Conv") })
      #expect(problems.count == 2, "\(problems)")
    }
  }

  @Test func boundsArePartOfANameAndDoNotDependOnPacking() throws {
    func exponent(_ values: [Float], _ shape: [Int]) throws -> Int? {
      Problem.Operand(dataType: .float32, shape: shape, constant: try Tensor(values, shape: shape)).largestExponent
    }
    #expect(try exponent([0.01, -0.0625], [2]) == -4)
    #expect(try exponent([0.01, -0.0626], [1, 1, 2]) == 20)
    #expect(try exponent([0.01, 2e6], [2]) == nil)
    #expect(try exponent([0.01, .nan], [2]) == nil)
    #expect(try exponent([0.01, -.infinity], [2]) == nil)
    #expect(try exponent([1, 1, 1, 1], [2, 2]) == nil)
    let sum = ScalarExpr.max(.cast(.input(0), .float32) * .input(1) + .input(2), .const(0))
    let interval = sum.interval { [-100...100, -0.5...0.5, -3...1][$0] }
    #expect(interval == 0...51)
    #expect((sum * .unary(.exponential, .input(1))).interval { _ in 0...1 } == nil)
  }
}
