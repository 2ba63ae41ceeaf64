// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import ApusOps
import ApusTensor

/// Element types of a product: of its sides and of its sums.
struct ProductTypeCase: Sendable {
  let left: DataType
  let right: DataType
  /// The sums' type where it is not the sides'.
  let sum: DataType?

  /// Those that kernels of some instruction set multiply, the right side constant.
  static let all = [
    ProductTypeCase(left: .float32, right: .float32, sum: nil),
    ProductTypeCase(left: .float32, right: .float16, sum: .float32),
    ProductTypeCase(left: .bfloat16, right: .bfloat16, sum: .float32),
    ProductTypeCase(left: .uint8, right: .int8, sum: .int32),
  ]

  /// All epilogues for sums over `depth` products.
  func epilogues(depth: Int) -> [BatteryEpilogue?] {
    sum == .int32
      ? BatteryEpilogue.all(.int32, spread: 2e4 * Double(depth).squareRoot())
      : BatteryEpilogue.all(.float32, spread: 2)
  }

  /// How large weights are, so that sums over `depth` products reach about 2: functions such as the sigmoid are flat
  /// where sums are larger, and would hide what is wrong with them.
  func weightScale(depth: Int) -> Double {
    sum == .int32 ? 1 : 2 / Double(depth).squareRoot()
  }

  var epilogueCount: Int { epilogues(depth: 1).count }
}

/// Matrix products with a constant right side: around the edges of every register tile, with all epilogues.
enum PackedProducts: ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem] {
    var result: [BatteryProblem] = []
    for types in ProductTypeCase.all {
      var number = Rotation(Array(0..<types.epilogueCount))
      for (m, n, k) in sizes + large(types) {
        result.append(try problem(&make, types, [m, k], n, epilogue: number.take()))
      }
      // Every epilogue with full tiles and with tails, over short and long sums.
      for epilogue in 0..<types.epilogueCount {
        for (m, n, k) in [(14, 96, 8), (5, 19, 70), (3, 63, 12)] {
          result.append(try problem(&make, types, [m, k], n, epilogue: epilogue))
        }
      }
      // Tiles whose epilogue runs beside the sums, which leaves it few registers.
      if let (m, n, k) = large(types).first {
        let last = types.epilogueCount - 1
        for epilogue in [1, last / 2, last] {
          result.append(try problem(&make, types, [m, k], n, epilogue: epilogue))
        }
      }
      result.append(try problem(&make, types, [2, 3, 20], 35, epilogue: 1))
      result.append(try problem(&make, types, [16], 35, epilogue: 0))
    }
    return result
  }

  private static func problem(
    _ make: inout ProblemMaker, _ types: ProductTypeCase, _ left: [Int], _ n: Int, epilogue: Int
  ) throws -> BatteryProblem {
    let k = left[left.count - 1]
    return try make.problem(
      MatMul(sumType: types.sum),
      [
        try make.operand(types.left, left),
        try make.constant(types.right, [k, n], scale: types.weightScale(depth: k)),
      ],
      result: left.dropLast() + [n], types.epilogues(depth: k)[epilogue])
  }

  /// One less than, as many as and one more than a tile has rows and columns, over sums of all kinds of length.
  private static var sizes: [(Int, Int, Int)] {
    var depth = Rotation([4, 1, 5, 2, 8, 3, 7, 16, 33, 12, 64, 31])
    var result = [
      (1, 1, 1), (1, 300, 20), (200, 1, 9), (3, 40, 1500), (29, 129, 1030), (64, 1, 20),
    ]
    for tile in GemmTile.candidates(.current) {
      for (rows, columns) in [(-1, -1), (0, 0), (1, 1), (-1, 1), (1, -1), (0, 1), (1, 0)] {
        let m = max(1, tile.rows + rows)
        result.append((m, max(1, tile.columns(.current) + columns), depth.take()))
      }
      result.append((2 * tile.rows + 1, 2 * tile.columns(.current) - 1, depth.take()))
    }
    return result
  }

  /// Sizes for tiles that are offered for many results of short sums only.
  private static func large(_ types: ProductTypeCase) -> [(Int, Int, Int)] {
    let depths: [Int]
    switch types.left {
    case .uint8: depths = [16, 41]
    case .bfloat16: depths = [8, 21]
    default: return []
    }
    return depths.map { (1231, 331, $0) }
  }
}
