// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Comparisons and what depends on them.
extension ExpressionEmitter {
  /// `to = condition(a, b) ? yes : no`; `to` may be any of the registers.
  func choose(
    _ to: Vec, _ predicate: Predicate, _ a: Vec, _ b: some VectorOperand,
    yes: some VectorOperand, no: Vec
  ) throws(ApusError) {
    if isa == .avx512 {
      assembler.vcmpps(mask, a, b, predicate)
      assembler.vblendmps(to, mask, no, yes)
    } else {
      let lanes = try allocate()
      assembler.vcmpps(lanes, a, b, predicate)
      assembler.vblendvps(to, mask: lanes, no, yes)
      release(lanes)
    }
  }

  /// `to = condition(a, b) ? 1 : 0`
  func truth(_ to: Vec, _ predicate: Predicate, _ a: Vec, _ b: some VectorOperand) {
    if isa == .avx512 {
      assembler.vcmpps(mask, a, b, predicate)
      var one = constant(1)
      one.broadcast = false
      // A zero-masked broadcast writes 1 where the mask is set and 0 elsewhere.
      assembler.vbroadcastss(to, one, mask: mask)
    } else {
      assembler.vcmpps(to, a, b, predicate)
      assembler.vandps(to, to, constant(1))
    }
  }
}

extension BinaryFunction {
  var joinsConditions: Bool {
    self == .logicalAnd || self == .logicalOr || self == .logicalXor
  }
}

extension ScalarExpr {
  /// Whether its elements are all zeros and ones.
  private var isTruth: Bool {
    switch self {
    case .binary(let function, _, _): function.isPredicate
    case .unary(let function, _):
      function == .logicalNot || function == .isNaN || function == .isInfinite
    case .cast(_, let type): type == .bool
    case .input, .const, .select: false
    }
  }

  /// Whether its elements differ from zero, as a condition.
  var truth: ScalarExpr { isTruth ? self : .binary(.notEqual, self, .const(0)) }
}
