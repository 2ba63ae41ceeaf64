// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Lanes that hold 32-bit integers: sums of bytes, and what is rounded to bytes.
extension ExpressionEmitter {
  /// Rounds to integer lanes. The upper bound is applied to the number, because what is too large for
  /// an integer would turn negative. Where the store packs, the lower one is left to it, unless a negative
  /// zero point could take the lowest integer round to the other end.
  func quantize(_ quantization: ScalarQuantization, isStored: Bool) throws(ApusError) -> Value {
    let (range, zero) = (quantization.range, quantization.zeroPoint)
    let steps = try value(quantization.steps)
    let result = try target(steps)
    if isStored && narrowing == .saturatingUnsigned && quantization.type == .uint8 && zero == 0 {
      assembler.vmaxps(result, steps.register, constant(0))
      assembler.vcvtps2udq(result, result)
      isUnsigned = true
      return Value(register: result, owned: true)
    }
    if isStored && narrowing == .packingInRange {
      assembler.vcvtps2dq(result, steps.register)
      zeroPointLeft = zero
      return Value(register: result, owned: true)
    }
    let packs = isStored && narrowing == .packing
    assembler.vminps(result, steps.register, constant(Double(range.upperBound)))
    assembler.vcvtps2dq(result, result)
    if !packs || zero < 0 { assembler.vpmaxsd(result, result, integer(range.lowerBound)) }
    if packs && zero > 0 {
      zeroPointLeft = zero
    } else if zero != 0 {
      assembler.vpaddd(result, result, integer(zero))
    }
    return Value(register: result, owned: true)
  }

  private func integer(_ number: Int) -> Address {
    constant(bits: UInt32(truncatingIfNeeded: number))
  }

  /// Arithmetic on integer lanes.
  func integerBinary(_ function: BinaryFunction, _ a: ScalarExpr, _ b: ScalarExpr)
    throws(ApusError) -> Value
  {
    // Narrower integers would have to wrap around.
    let isWide = [a, b].allSatisfy { $0.dataType(inputs: types) == .int32 }
    guard isWide || function == .minimum || function == .maximum else {
      throw ApusError(.notYetSupported, "no vector code for arithmetic of narrow integers")
    }
    let (x, y) = try operands(a, b)
    let result = try target(x, y)
    switch function {
    case .add: assembler.vpaddd(result, x.register, y.register)
    case .subtract: assembler.vpsubd(result, x.register, y.register)
    case .minimum: assembler.vpminsd(result, x.register, y.register)
    case .maximum: assembler.vpmaxsd(result, x.register, y.register)
    default:
      throw ApusError(.notYetSupported, "no vector code for \(function.rawValue) of integers")
    }
    return finish(result, x, y)
  }
}
