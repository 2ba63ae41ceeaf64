// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// Numbers behind integer sums move into the constant operands of the epilogue.
@Suite struct OperandScaleTests {
  private let sum = ScalarExpr.cast(.input(0), .float32)

  /// A product of bytes with vectors `s` and `b` of five elements, and a matrix `r`, behind it.
  private func graph(_ expression: ScalarExpr, biasIsConstant: Bool = true) throws -> Graph {
    var generator = SeededGenerator(seed: 3)
    var b = GraphBuilder("scales")
    let x = b.input("x", .uint8, [3, 8])
    let w = b.constant("w", try generator.tensor(.int8, shape: [8, 5]))
    let s = b.constant("s", try generator.tensor(.float32, shape: [5]))
    let bias =
      biasIsConstant
      ? b.constant("b", try generator.tensor(.float32, shape: [5])) : b.input("b", .float32, [5])
    let r = b.input("r", .float32, [3, 5])
    let y = try b.apply(
      Fused(
        anchor: MatMul(sumType: .int32), anchorInputCount: 2,
        epilogue: Epilogue(expression, extraCount: 3)), [x, w, s, bias, r])
    return try b.finish(outputs: [("y", y)])
  }

  private func run(_ graph: Graph) throws -> [Double] {
    var generator = SeededGenerator(seed: 9)
    let inputs = try graph.inputs.map { id -> RuntimeValue? in
      let type = graph[id].type.tensor!
      return .tensor(try generator.tensor(type.dataType, shape: type.shape!))
    }
    return try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor!.doubles()
  }

  private func merged(_ graph: Graph) throws -> (expression: ScalarExpr?, count: Int, graph: Graph) {
    var copy = graph
    let count = try MergeOperandScales().run(on: &copy, in: PassContext())
    let op = copy.nodes.compactMap { copy[$0].op as? Fused }.first
    return (op?.epilogue.expression, count, copy)
  }

  @Test func aScaledSumBecomesOneMultiplyAdd() throws {
    let before = try graph((sum * .input(1) + .input(2)) * .const(42.5))
    let (expression, count, after) = try merged(before)
    #expect(count == 1 && expression == sum * .input(1) + .input(2))
    for (a, b) in zip(try run(before), try run(after)) { #expect(abs(a - b) <= 1e-5 * abs(a) + 1e-4) }
  }

  @Test func constantVectorsAreAddedOnce() throws {
    let before = try graph(sum * .input(1) + .input(2) + .input(1))
    let (expression, count, after) = try merged(before)
    #expect(count == 1 && expression == sum * .input(1) + .input(2))
    for (a, b) in zip(try run(before), try run(after)) { #expect(abs(a - b) <= 1e-5 * abs(a) + 1e-4) }
  }

  @Test func whatIsAddedToIntegersIsAddedBehind() throws {
    var generator = SeededGenerator(seed: 4)
    var b = GraphBuilder("terms")
    let x = b.input("x", .uint8, [3, 8])
    let w = b.constant("w", try generator.tensor(.int8, shape: [8, 5]))
    let t = b.constant("t", try Tensor([Int64]([700, -3, 0, 12, -90_000]), .int32, shape: [5]))
    let s = b.constant("s", try generator.tensor(.float32, shape: [5]))
    let c = b.constant("b", try generator.tensor(.float32, shape: [5]))
    let term = ScalarExpr.cast(.input(0) + .input(1), .float32)
    let y = try b.apply(
      Fused(
        anchor: MatMul(sumType: .int32), anchorInputCount: 2,
        epilogue: Epilogue(term * .input(2) + .input(3), extraCount: 3)), [x, w, t, s, c])
    let before = try b.finish(outputs: [("y", y)])
    let (expression, count, after) = try merged(before)
    #expect(count == 1 && expression == sum * .input(1) + .input(2))
    for (a, b) in zip(try run(before), try run(after)) { #expect(abs(a - b) <= 1e-5 * abs(a) + 1e-2) }
  }

  @Test func operandsThatAreStillReadStay() throws {
    let y = sum * .input(1) + .input(2)
    let before = try graph(.max(y, y * .const(3)) + .input(3) * .const(2) + .const(5))
    let (expression, _, after) = try merged(before)
    let extras = expression?.useCounts().keys.filter { $0 > 0 }.count
    // The scaled and the unscaled vectors, and the matrix.
    #expect(extras == 5, "\(String(describing: expression))")
    for (a, b) in zip(try run(before), try run(after)) { #expect(abs(a - b) <= 1e-5 * abs(a) + 1e-4) }
  }

  @Test func whatIsComputedIsLeftAlone() throws {
    let (_, count, _) = try merged(
      try graph((sum * .input(1) + .input(2)) * .const(42.5), biasIsConstant: false))
    #expect(count == 0)
  }
}
