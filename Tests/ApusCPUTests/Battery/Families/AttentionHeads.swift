// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusOps
import ApusTensor

/// Attention: heads side by side and apart, masks of every shape, causal and not.
enum AttentionHeads: ProblemFamily {
  private struct Case {
    var batch = 1
    var heads = 2
    var keyHeads = 2
    var queries: Int
    var keys: Int
    var width: Int
    var valueWidth: Int
    var isSideBySide = true
  }

  private static let cases = [
    Case(heads: 1, keyHeads: 1, queries: 1, keys: 1, width: 1, valueWidth: 1),
    Case(queries: 1, keys: 1, width: 8, valueWidth: 8),
    Case(queries: 1, keys: 130, width: 64, valueWidth: 64),
    Case(queries: 5, keys: 7, width: 33, valueWidth: 33),
    Case(queries: 5, keys: 7, width: 34, valueWidth: 31),
    Case(batch: 2, heads: 3, keyHeads: 3, queries: 33, keys: 65, width: 80, valueWidth: 80),
    Case(queries: 16, keys: 64, width: 32, valueWidth: 48, isSideBySide: false),
    Case(queries: 15, keys: 63, width: 16, valueWidth: 17, isSideBySide: false),
    Case(queries: 31, keys: 197, width: 64, valueWidth: 70, isSideBySide: false),
    Case(heads: 4, keyHeads: 1, queries: 40, keys: 31, width: 16, valueWidth: 5),
    Case(
      batch: 2, heads: 4, keyHeads: 2, queries: 65, keys: 129, width: 30, valueWidth: 64,
      isSideBySide: false),
    Case(heads: 1, keyHeads: 1, queries: 70, keys: 520, width: 24, valueWidth: 16),
    Case(heads: 1, keyHeads: 1, queries: 3, keys: 1100, width: 12, valueWidth: 18),
  ]

  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for type in [DataType.float32, .bfloat16] {
      for (number, shape) in cases.enumerated() {
        for variant in 0..<3 {
          result.append(try problem(&make, shape, type, variant, number))
        }
      }
    }
    return result
  }

  /// Variants: plain, causal, with a mask.
  private static func problem(
    _ make: inout ProblemMaker, _ shape: Case, _ type: DataType, _ variant: Int, _ number: Int
  ) throws -> BatteryProblem {
    func dims(_ heads: Int, _ places: Int, _ width: Int) -> [Int] {
      shape.isSideBySide
        ? [shape.batch, places, heads * width] : [shape.batch, heads, places, width]
    }
    var operands: [ProblemMaker.Operand?] = [
      try make.operand(type, dims(shape.heads, shape.queries, shape.width), scale: 2),
      try make.operand(type, dims(shape.keyHeads, shape.keys, shape.width), scale: 2),
      try make.operand(type, dims(shape.keyHeads, shape.keys, shape.valueWidth)),
    ]
    if variant == 2 {
      let masks = [
        [shape.queries, shape.keys], [1, 1, 1, shape.keys], [shape.batch, 1, 1, shape.keys],
        [shape.batch, shape.heads, shape.queries, shape.keys],
      ]
      var mask = try make.operand(.float32, masks[number % masks.count], scale: 2)
      // Every third key hides, but never all of a query's.
      let values = mask.tensor.doubles().enumerated().map { index, value in
        index % shape.keys % 3 == 1 ? -Double.infinity : value
      }
      mask.tensor = try Tensor(values, .float32, shape: mask.tensor.shape)
      operands.append(mask)
    }
    let sums: [DataType?] = type == .bfloat16 ? [nil, .float32] : [nil]
    return try make.problem(
      Attention(
        isCausal: variant == 1, queryHeads: shape.isSideBySide ? shape.heads : nil,
        keyHeads: shape.isSideBySide ? shape.keyHeads : nil,
        scale: number % 2 == 0 ? nil : 0.3, sumType: sums[number % sums.count]), operands)
  }
}
