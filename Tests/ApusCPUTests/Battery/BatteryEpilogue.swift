// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import ApusGraph
import ApusTensor

/// What follows a sum before it is stored.
struct BatteryEpilogue: Sendable {
  typealias Extra = (kind: EpilogueOperand, type: DataType)

  let expression: ScalarExpr
  let extras: [Extra]

  init(_ expression: ScalarExpr, _ extras: [Extra] = []) {
    self.expression = expression
    self.extras = extras
  }

  /// Epilogues of sums of this type: nothing, operands of all kinds, every kind of function, results of every type
  /// that kernels store. A sum reaches about `spread`.
  static func all(_ sum: DataType, spread: Double = 4) -> [BatteryEpilogue?] {
    sum == .int32 ? ofIntegers(spread) : ofFloats(spread)
  }

  private static let x = ScalarExpr.input(0)
  private static let y = ScalarExpr.input(1)

  private static func rounded(_ value: ScalarExpr, _ type: DataType, zero: Int) -> ScalarExpr {
    ScalarQuantization(steps: value, zeroPoint: zero, type: type).expression
  }

  private static func gelu(_ value: ScalarExpr) -> ScalarExpr {
    value * .const(0.5) * (.const(1) + .unary(.errorFunction, value * .const(0.70710678)))
  }

  private static func ofFloats(_ spread: Double) -> [BatteryEpilogue?] {
    let biased = x + y
    let steps = ScalarExpr.const(100 / spread)
    return [
      nil,
      BatteryEpilogue(.max(biased, .const(0)), [(.perColumn, .float32)]),
      BatteryEpilogue(
        .max(biased + .input(2), .const(0)), [(.perColumn, .float32), (.full, .float32)]),
      BatteryEpilogue(
        x * y + .input(2) + .input(3),
        [(.scalar, .float32), (.perColumn, .float32), (.full, .float32)]),
      BatteryEpilogue(.min(.max(biased, .const(0)), .const(spread / 2)), [(.perColumn, .float32)]),
      BatteryEpilogue(gelu(x)),
      BatteryEpilogue(
        gelu(biased) + .input(2), [(.perColumn, .float32), (.full, .float32)]),
      BatteryEpilogue(x * .unary(.sigmoid, x)),
      BatteryEpilogue(
        .unary(.hyperbolicTangent, biased) + .input(2) * .unary(.sigmoid, x),
        [(.perColumn, .float32), (.full, .float32)]),
      BatteryEpilogue(
        .select(.binary(.greater, biased, .const(0)), biased, biased * .const(0.1)),
        [(.perColumn, .float32)]),
      BatteryEpilogue(
        .cast(.max(biased, .const(0)), .bfloat16), [(.perColumn, .float32)]),
      BatteryEpilogue(
        .cast(biased + .cast(.input(2), .float32), .bfloat16),
        [(.perColumn, .float32), (.full, .bfloat16)]),
      BatteryEpilogue(rounded(biased * steps, .uint8, zero: 90), [(.perColumn, .float32)]),
      BatteryEpilogue(
        rounded(biased * steps + .cast(.input(2), .float32), .int8, zero: -3),
        [(.perColumn, .float32), (.full, .uint8)]),
    ]
  }

  private static func ofIntegers(_ spread: Double) -> [BatteryEpilogue?] {
    let steps = ScalarExpr.cast(x, .float32) * .const(100 / spread)
    let biased = ScalarExpr.cast(x + y, .float32) * .const(100 / spread)
    return [
      nil,
      BatteryEpilogue(x + y, [(.perColumn, .int32)]),
      BatteryEpilogue(.cast(x, .float32) * y, [(.perColumn, .float32)]),
      BatteryEpilogue(rounded(.max(biased, .const(0)), .uint8, zero: 7), [(.perColumn, .int32)]),
      BatteryEpilogue(
        rounded(biased * .unary(.absolute, .input(2)), .int8, zero: -5),
        [(.perColumn, .int32), (.perColumn, .float32)]),
      BatteryEpilogue(
        rounded(
          biased + (.cast(.input(2), .float32) - .const(100)) * .const(0.7), .uint8, zero: 90),
        [(.perColumn, .int32), (.full, .uint8)]),
      BatteryEpilogue(
        rounded(gelu(steps * .const(0.03)) * .const(30), .uint8, zero: 20)),
      BatteryEpilogue(.max(steps + y, .const(0)), [(.full, .float32)]),
      BatteryEpilogue(.cast(.max(steps, .const(0)), .bfloat16)),
    ]
  }
}
