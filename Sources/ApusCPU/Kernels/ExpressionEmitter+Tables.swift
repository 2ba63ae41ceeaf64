// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Functions of one small integer with a small integer for a result, as an activation between two
/// quantised tensors is: whatever the function, it is a table. With permutations of bytes it has 256 bytes, four
/// registers' worth of memory; without them as many lanes, which are gathered one by one.
extension ExpressionEmitter {
  /// A subexpression with at most 256 results, all whole.
  private struct SmallInteger {
    /// What is rounded and limited.
    let steps: ScalarExpr
    let range: ClosedRange<Int>
    /// The integer type and zero point it is stored with; a float otherwise.
    let stored: (type: DataType, zeroPoint: Int)?

    init?(_ expression: ScalarExpr) {
      if let quantization = ScalarQuantization(expression), quantization.type.bitWidth == 8 {
        steps = quantization.steps
        range = quantization.range
        stored = (quantization.type, quantization.zeroPoint)
        return
      }
      guard case .unary(.round, .binary(.maximum, .const(let low), let upper)) = expression,
        case .binary(.minimum, .const(let high), let steps) = upper,
        low == low.rounded(), high == high.rounded(), abs(low) < 65536, low <= high, high - low < 256
      else { return nil }
      self.steps = steps
      range = Int(low)...Int(high)
      stored = nil
    }

    /// All values in order, as an operand of the reference.
    var elements: ScalarEvaluator.Elements {
      if let stored { return .whole(range.map { Int64($0 + stored.zeroPoint) }, stored.type) }
      return .real(range.map(Double.init), .float32)
    }
  }

  /// Instructions that a look-up must save to be worth it: a gather takes as long as some thirty.
  private var leastSaving: Int { isa == .avx512 ? 10 : 25 }

  /// The result of `expression` by table, where it is a small integer that follows from another one.
  func lookUp(_ expression: ScalarExpr) throws(ApusError) -> Value? {
    guard isa != .avx512 || CPUFeatures.host.avx512VBMI, let result = SmallInteger(expression),
      let source = source(of: result.steps), let from = SmallInteger(source)
    else { return nil }
    let function = expression.replacing(source, with: .input(0))
    let evaluator = ScalarEvaluator(operands: [from.elements], count: from.range.count)
    let type = result.stored?.type ?? .float32
    let values = try evaluator.evaluate(function, expected: type).wholes
    if isa != .avx512 {
      let words = values.map {
        result.stored == nil ? Float($0).bitPattern : UInt32(truncatingIfNeeded: Int64($0))
      }
      return Value(register: try gather(try index(from), in: words), owned: true)
    }
    let base = result.range.lowerBound + (result.stored?.zeroPoint ?? 0)
    var table = values.map { UInt8(clamping: Int($0) - base) }
    table += Array(repeating: 0, count: 256 - table.count)
    let lanes = try look(up: try index(from), in: table)
    if let stored = result.stored {
      let low = Int(stored.type.integerRange.lowerBound)
      if low != 0 { assembler.vpaddd(lanes, lanes, constant(bits: UInt32(truncatingIfNeeded: low))) }
    } else {
      assembler.vcvtdq2ps(lanes, lanes)
      if base != 0 { assembler.vaddps(lanes, lanes, constant(Double(base))) }
    }
    return Value(register: lanes, owned: true)
  }

  /// The value's place in its range, as integer lanes.
  private func index(_ integer: SmallInteger) throws(ApusError) -> Vec {
    let steps = try value(integer.steps)
    let lanes = try target(steps)
    let low = UInt32(truncatingIfNeeded: integer.range.lowerBound)
    assembler.vminps(lanes, steps.register, constant(Double(integer.range.upperBound)))
    assembler.vcvtps2dq(lanes, lanes)
    assembler.vpmaxsd(lanes, lanes, constant(bits: low))
    if low != 0 { assembler.vpsubd(lanes, lanes, constant(bits: low)) }
    return lanes
  }

  /// Replaces lanes in 0..<256 by the bytes of the table at these places.
  private func look(up lanes: Vec, in table: [UInt8]) throws(ApusError) -> Vec {
    let words = stride(from: 0, to: 256, by: 4).map { place -> UInt32 in
      table[place..<place + 4].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
    let quarters = (0..<4).map { assembler.constant(words: Array(words[$0 * 16..<$0 * 16 + 16])) }
    let low = try allocate()
    let high = try allocate()
    assembler.vmovups(low, quarters[0])
    assembler.vpermt2b(low, lanes, quarters[1])
    assembler.vmovups(high, quarters[2])
    assembler.vpermt2b(high, lanes, quarters[3])
    assembler.vptestmd(Mask(1), lanes, constant(bits: 128))
    assembler.vblendmps(low, Mask(1), low, high)
    // The other bytes of a lane looked up the table's first place.
    assembler.vandps(lanes, low, constant(bits: 255))
    release(low)
    release(high)
    return lanes
  }

  /// Replaces lanes by the words of the table at these places.
  private func gather(_ lanes: Vec, in table: [UInt32]) throws(ApusError) -> Vec {
    let (result, mask) = (try allocate(), try allocate())
    load(UInt32.max, into: mask)
    assembler.vxorps(result, result, result)
    // The kernels around have their own use for each register.
    assembler.push(.rax)
    assembler.lea(.rax, assembler.constant(words: table))
    assembler.vpgatherdd(result, .rax, lanes, mask: mask)
    assembler.pop(.rax)
    release(mask)
    release(lanes)
    return result
  }

  /// The small integer that all of `expression` follows from, where enough is computed from it.
  private func source(of expression: ScalarExpr) -> ScalarExpr? {
    var candidates: [ScalarExpr] = []
    Self.collect(expression, &candidates)
    return candidates.first { candidate in
      var operations = Set<ScalarExpr>()
      return Self.follows(expression, from: candidate, &operations)
        && operations.reduce(0) { $0 + Self.cost($1) } >= leastSaving
    }
  }

  /// Small integers inside, the innermost first.
  private static func collect(_ expression: ScalarExpr, _ found: inout [ScalarExpr]) {
    for child in expression.children { collect(child, &found) }
    if SmallInteger(expression) != nil, !found.contains(expression) { found.append(expression) }
  }

  /// Whether nothing but constants and `source` goes into `expression`; gathers what is computed.
  private static func follows(
    _ expression: ScalarExpr, from source: ScalarExpr, _ operations: inout Set<ScalarExpr>
  ) -> Bool {
    if expression == source || operations.contains(expression) { return true }
    if case .input = expression { return false }
    if case .const = expression { return true }
    operations.insert(expression)
    return expression.children.allSatisfy { follows($0, from: source, &operations) }
  }

  /// A rough number of instructions.
  private static func cost(_ expression: ScalarExpr) -> Int {
    switch expression {
    case .unary(let function, _):
      switch function {
      case .negate, .absolute, .squareRoot, .floor, .ceiling, .round, .truncate: 1
      default: 15
      }
    case .binary(.power, _, _): 30
    default: 1
    }
  }
}

extension ScalarExpr {
  /// What goes into the last function.
  fileprivate var children: [ScalarExpr] {
    switch self {
    case .input, .const: []
    case .unary(_, let a), .cast(let a, _): [a]
    case .binary(_, let a, let b): [a, b]
    case .select(let c, let a, let b): [c, a, b]
    }
  }
}
