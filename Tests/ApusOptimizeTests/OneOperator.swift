// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

/// Networks of one operator, for passes that rewrite it.
enum OneOperator {
  /// Rewrites a network by a pass, and checks that its results are what they were.
  ///
  /// - Parameters:
  ///   - operands: Those after the input.
  ///   - computed: Whether they are inputs, too, instead of constants.
  static func rewrite(
    _ pass: any Pass, _ op: any Operator, _ operands: [Tensor], input: [Int], computed: Bool = false
  ) throws -> Graph {
    var b = GraphBuilder("one")
    let x = b.input("x", .float32, input.map { Dim($0) })
    var values: [ValueID?] = [x]
    for (index, tensor) in operands.enumerated() {
      values.append(
        computed
          ? b.input("w\(index)", tensor.dataType, tensor.shape.map { Dim($0) })
          : b.constant("w\(index)", tensor))
    }
    let graph = try b.finish(outputs: [("y", try b.apply(op, values))])
    var rewritten = graph
    _ = try pass.run(on: &rewritten, in: PassContext())
    var generator = SeededGenerator(seed: 3)
    var inputs: [RuntimeValue?] = [.tensor(try generator.tensor(.float32, shape: input))]
    if computed { inputs += operands.map { .tensor($0) } }
    let want = try #require(try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor)
    let got = try #require(try ReferenceInterpreter.run(rewritten, inputs: inputs)[0].tensor)
    #expect(TensorDifference(got, want).relativeL2 < 1e-6, "\(op.attributes)")
    return rewritten
  }
}
