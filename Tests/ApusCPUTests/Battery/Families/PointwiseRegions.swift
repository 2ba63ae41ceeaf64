// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
import ApusTensor

/// Elementwise regions: every function, every way to broadcast, every element type.
enum PointwiseRegions: ProblemFamily {
  private static let x = ScalarExpr.input(0)
  private static let y = ScalarExpr.input(1)
  private static let z = ScalarExpr.input(2)
  private static let counts = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 129, 1000]

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    var count = Rotation(counts)
    for function in UnaryFunction.allCases {
      let operand = function == .logicalNot ? ScalarExpr.binary(.less, x, .const(0.1)) : x
      for _ in 0..<3 {
        result.append(
          try problem(
            &make, .unary(function, operand), .float32, [(.float32, [count.take()])],
            positive: positive.contains(function)))
      }
    }
    let conditions: [BinaryFunction] = [.logicalAnd, .logicalOr, .logicalXor]
    for function in BinaryFunction.allCases {
      // A number as a condition, and what is one.
      let right = conditions.contains(function) ? ScalarExpr.binary(.greater, y, .const(0.2)) : y
      for _ in 0..<3 {
        let shape = [count.take()]
        result.append(
          try problem(
            &make, .binary(function, x, right), .float32,
            [(.float32, shape), (.float32, shape)],
            positive: function == .power))
      }
    }
    for count in counts {
      result += try regions(&make, [count])
      result += try regions(&make, [3, 5, count])
    }
    for (a, b) in broadcasts {
      result.append(
        try problem(&make, x * y + .const(1), .float32, [(.float32, a), (.float32, b)]))
      result.append(
        try problem(
          &make, .max(x, y) - z, .float32, [(.float32, a), (.float32, b), (.float32, [])]))
    }
    return result
  }

  /// Functions that have values for positive numbers only.
  private static let positive: Set<UnaryFunction> = [
    .squareRoot, .reciprocalSquareRoot, .logarithm, .inverseHyperbolicCosine, .reciprocal,
  ]

  private static let broadcasts: [([Int], [Int])] = [
    ([4, 7], [7]), ([4, 7], [1, 7]), ([4, 7], [4, 1]), ([2, 3, 17], [3, 1]),
    ([2, 3, 17], [2, 1, 17]),
    ([2, 1, 17], [3, 1]), ([5, 1], [1, 33]), ([2, 3, 4, 5], [1, 3, 1, 1]), ([1], [16]),
    ([], [3, 5]),
    ([3, 2, 300], [2, 300]), ([130, 9], [130, 1]), ([2, 3, 1, 1], [2, 3, 5, 13]),
  ]

  /// Regions of several operands, with elements of all types.
  private static func regions(_ make: inout ProblemMaker, _ shape: [Int]) throws -> [BatteryProblem]
  {
    let row = [shape[shape.count - 1]]
    let scaled = ScalarExpr.max(x * y + z, .const(0))
    let bytes = ScalarExpr.cast(x, .float32) * .const(0.37)
    func rounded(_ value: ScalarExpr, _ type: DataType) -> ScalarExpr {
      ScalarQuantization(steps: value, zeroPoint: 3, type: type).expression
    }
    return [
      try problem(
        &make, scaled, .float32, [(.float32, shape), (.float32, row), (.float32, shape)]),
      try problem(
        &make, .cast(.cast(x, .float32) * y + .cast(z, .float32), .bfloat16), .bfloat16,
        [(.bfloat16, shape), (.float32, row), (.bfloat16, shape)]),
      try problem(
        &make, .cast(x, .float32) * y, .float32, [(.bfloat16, shape), (.float32, shape)]),
      try problem(&make, .cast(x, .bfloat16), .bfloat16, [(.float32, shape)]),
      try problem(&make, rounded(x * .const(90), .uint8), .uint8, [(.float32, shape)]),
      try problem(&make, rounded(x * .const(90), .int8), .int8, [(.float32, shape)]),
      try problem(&make, bytes, .float32, [(.uint8, shape)]),
      try problem(&make, bytes * y, .float32, [(.int8, shape), (.float32, row)]),
      try problem(
        &make, rounded(bytes + .cast(y, .float32) * .const(0.6), .uint8), .uint8,
        [(.uint8, shape), (.uint8, shape)]),
      try problem(&make, .cast(x, .float32) * y, .float32, [(.int32, shape), (.float32, [])]),
      try problem(
        &make, .select(.binary(.less, x, y), x * .const(0.1), y), .float32,
        [(.float32, shape), (.float32, shape)]),
    ]
  }

  private static func problem(
    _ make: inout ProblemMaker, _ expression: ScalarExpr, _ type: DataType,
    _ operands: [(DataType, [Int])], positive: Bool = false
  ) throws -> BatteryProblem {
    // What tests or counts has another type, which the region converts.
    let own = expression.dataType(inputs: operands.map(\.0))
    let region = own == nil || own == type ? expression : ScalarExpr.cast(expression, type)
    return try make.problem(
      Pointwise(expression: region, resultType: type),
      try operands.map { type, shape in
        var operand = try make.operand(type, shape)
        if positive {
          operand.tensor = try Tensor(
            operand.tensor.doubles().map { abs($0) + 1 }, type, shape: shape)
        }
        return operand
      })
  }
}
