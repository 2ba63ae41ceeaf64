// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// By how much a kernel's result may differ from what the reference says, and whether it does.
package struct ResultComparison {
  /// What a comparison finds.
  package struct Verdict {
    /// The largest difference that counts, where the allowed one is 1.
    package var error: Double
    /// What is wrong, with the worst element; nil when all is well.
    package var reason: String?
  }

  /// The largest difference that is allowed.
  package let allowed: Double
  private let scale: Double
  private let rounds: Bool
  /// Whether what is rounded was computed from rounded numbers: one step of those may be several of the result.
  private let roundsAgain: Bool
  private let type: DataType
  private let sumsIntegers: Bool

  /// A comparison for a result of this type whose largest elements are about `scale`.
  package init(_ problem: Problem, _ type: DataType, scale: Double) {
    let depth = problem.cost.operations / max(1, Double(problem.outputs[0].count))
    let tolerance =
      problem.op.tolerance(type, inputs: problem.inputTypes)
      * (type.isFloat ? max(1, depth.squareRoot() / 8) : 1)
    self.scale = scale
    self.type = type
    rounds = problem.op.rounds
    roundsAgain = problem.op.roundsAgain
    // A number next to a tie may be rounded to the other side.
    let step = type.isFloat ? Self.step(type) * scale.binade : rounds ? 1 : tolerance
    allowed = max(tolerance * scale, scale > 0 || !type.isFloat ? step : 0)
    // A product of integers, with whatever follows it.
    sumsIntegers =
      (problem.op as? any SampledOperator)?.canSample == true
      && problem.inputs.prefix(2).allSatisfy { $0?.dataType.isInteger == true }
  }

  /// How many steps of a result one step of what it was computed from may be; those of a swish in bytes are two to three.
  private static let stepsOfAnother = 4.0

  /// The distance of neighbouring numbers of a narrow type, from one upwards.
  private static func step(_ type: DataType) -> Double {
    switch type {
    case .bfloat16: 0x1p-7
    case .float16: 0x1p-10
    default: 0
    }
  }

  /// The largest of the finite values.
  package static func scale(_ values: [Double]) -> Double {
    values.reduce(0) { $1.isFinite ? max($0, abs($1)) : $0 }
  }

  /// Compares with the reference's values of all elements, or of those with the given indices.
  package func verdict(_ got: [Double], _ want: [Double], at indices: [Int]? = nil) -> Verdict {
    var ties = rounds && (type.isFloat || roundsAgain) ? max(2, want.count / 200) : 0
    // Sums of bytes near the exact ones may move a number across a tie, by a step, but not many. One in
    // twenty is ten times what Winograd's form moves, so that chance among samples refuses nothing.
    var moves = type.isInteger && rounds && sumsIntegers ? max(2, want.count / 20) : .max
    var worst = (difference: 0.0, index: 0, got: 0.0, want: 0.0)
    for position in want.indices {
      let index = indices?[position] ?? position
      let a = got[index]
      let b = want[position]
      if a == b || (a.isNaN && b.isNaN) { continue }
      // A NaN on one side is as wrong as can be, and must not hide among smaller differences.
      let difference = (a - b).isNaN ? .infinity : abs(a - b)
      if difference > allowed, type.isFloat ? difference < scale / 4 : difference <= Self.stepsOfAnother, ties > 0 {
        ties -= 1
        continue
      }
      moves -= 1
      if difference > worst.difference { worst = (difference, index, a, b) }
    }
    let error = worst.difference == 0 ? 0 : worst.difference / allowed
    if worst.difference > allowed {
      return Verdict(
        error: error,
        reason:
          "element \(worst.index) is \(worst.got), the reference says \(worst.want) (allowed difference \(allowed))"
      )
    }
    return Verdict(
      error: error,
      reason: moves < 0
        ? "more than one in twenty of \(want.count) elements differ from the reference" : nil)
  }
}

extension Operator {
  /// What is done to each element.
  private var region: ScalarExpr? { (self as? Fused)?.epilogue.expression ?? (self as? Pointwise)?.expression }

  /// Whether rounded numbers are rounded again in a region.
  fileprivate var roundsAgain: Bool {
    if let chain = self as? Chain { return chain.stages.contains { $0.roundsAgain } }
    func isRounded(_ expression: ScalarExpr) -> Bool {
      if case .unary(.round, _) = expression { return true }
      return false
    }
    return region?.contains { (expression: ScalarExpr) in
      if case .unary(.round, let inner) = expression { return inner.contains(where: isRounded) }
      return false
    } ?? false
  }

  /// Whether results are rounded to whole steps somewhere in a region.
  fileprivate var rounds: Bool {
    if let chain = self as? Chain { return chain.stages.contains { $0.rounds } }
    return region?.contains { (expression: ScalarExpr) in
      switch expression {
      case .unary(.round, _): true
      case .cast(_, let type): type.isInteger
      default: false
      }
    } ?? false
  }
}
