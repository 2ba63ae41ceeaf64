// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusGraph
import ApusOps
import ApusTensor
import Testing

/// Functions between small integers by table.
@Suite struct ByteTableTests {
  private let pool = ThreadPool(threadCount: 2)

  /// Numbers that round to every small integer, some beyond their range.
  private let steps = (0..<901).map { Float($0) * 0.75 - 330 }

  /// `y * sigmoid(y)` with every tensor in between quantised.
  private func swish(_ y: ScalarExpr, _ middle: (ScalarExpr) -> ScalarExpr) -> ScalarExpr {
    y * middle(.unary(.sigmoid, y))
  }

  private func check(_ expression: ScalarExpr, _ result: DataType, _ isa: ISA) throws {
    let kernel = try PointwiseKernel(
      expression, operands: [.contiguous], types: .init(operands: [.float32], result: result),
      isa: isa)
    let input = GuardedBuffer(count: steps.count) { steps[$0] }
    let output = try GuardedTensor(Tensor(result, shape: [steps.count]))
    var address = UnsafeRawPointer(input.raw)
    kernel.run(&address, result: output.raw, count: steps.count, pool: pool)
    let evaluator = ScalarEvaluator(
      operands: [.real(steps.map { Double($0) }, .float32)], count: steps.count)
    let want = try evaluator.evaluate(expression, expected: result).reals
    let got = output.tensor.doubles()
    let wrong = got.indices.first { got[$0] != want[$0] }
    #expect(
      wrong == nil,
      "\(expression) of \(steps[wrong ?? 0]): \(got[wrong ?? 0]) for \(want[wrong ?? 0])")
  }

  @Test(arguments: testedISAs.filter { $0 != .avx512 || CPUFeatures.host.avx512VBMI })
  func chainsOfQuantisedFunctionsAreExact(isa: ISA) throws {
    let x = ScalarExpr.input(0)
    for (type, zero) in [(DataType.uint8, 0), (.uint8, 117), (.int8, 0), (.int8, -5)] {
      let first = ScalarQuantization(steps: x, zeroPoint: zero, type: type)
      // As bytes, the zero point taken off again, and as the whole number that a float holds.
      let stored = (ScalarExpr.cast(first.expression, .float32) - .const(Double(zero))) * .const(0.05)
      let whole = ScalarQuantization(steps: x, zeroPoint: 0, type: type)
      let float = ScalarExpr.unary(
        .round, .max(.const(-125), .min(.const(130), x))) * .const(0.05)
      for y in [stored, float] {
        let chain = swish(y) { gate in
          ScalarExpr.unary(.round, .max(.const(0), .min(.const(255), gate * .const(255)))) * .const(1 / 255.0)
        }
        let last = ScalarQuantization(steps: chain * .const(20), zeroPoint: zero, type: type)
        try check(last.expression, type, isa)
        // The same without the last conversion, dequantised.
        let rounded = ScalarExpr.unary(.round, .max(.const(-6), .min(.const(249), chain * .const(20))))
        try check(rounded, .float32, isa)
        try check(rounded + whole.rounded, .float32, isa)
      }
    }
  }
}
