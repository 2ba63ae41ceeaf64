// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// A problem read as an anchor with its epilogue.
struct AnchoredProblem {
  /// The anchor operator.
  let anchor: any Operator
  /// The anchor's operands.
  let inputs: ArraySlice<Problem.Operand?>
  /// What is done to each result element.
  let epilogue: ScalarExpr
  /// How the extra operands are indexed.
  let extras: [EpilogueOperand]

  /// The element types; nil when there is no kernel for the anchor's.
  let types: ProductTypes?
  /// Why the epilogue cannot run in registers; nil when it can.
  let refusal: String?

  init(_ problem: Problem) {
    guard let fused = problem.op as? Fused else {
      anchor = problem.op
      inputs = problem.inputs[...]
      epilogue = .input(0)
      extras = []
      types = Self.types(problem.op, problem.inputs[...], problem.outputs[0].dataType, [])
      refusal = nil
      return
    }
    anchor = fused.anchor
    inputs = problem.inputs.prefix(fused.anchorInputCount)
    epilogue = fused.epilogue.expression
    var extras: [EpilogueOperand] = []
    var extraTypes: [DataType] = []
    var refusal: String?
    let shape = problem.outputs[0].shape
    for operand in problem.inputs.dropFirst(fused.anchorInputCount) {
      guard let operand, let kind = Self.kind(operand.shape, shape) else {
        refusal = "an extra operand is neither a scalar, a vector nor of the result's shape"
        break
      }
      guard ElementAccess.supports(operand.dataType, .current),
        kind == .full || operand.dataType.bitWidth == 32
      else {
        refusal = "no vector code for operands of \(operand.dataType)"
        break
      }
      extras.append(kind)
      extraTypes.append(operand.dataType)
    }
    var types = Self.types(fused.anchor, inputs, problem.outputs[0].dataType, extraTypes)
    types?.stepsFit = Self.stepsFit(epilogue, inputs, problem.inputs.dropFirst(inputs.count))
    if let types, refusal == nil {
      do throws(ApusError) {
        _ = try ExpressionEmitter.registersNeeded(
          epilogue, isa: .current, types: [types.kind.sumType] + extraTypes, result: types.result)
      } catch {
        refusal = error.message
      }
    }
    self.types = types
    self.extras = extras
    self.refusal = refusal
  }

  /// The types of a product whose operands have fast kernels.
  private static func types(
    _ anchor: any Operator, _ inputs: ArraySlice<Problem.Operand?>, _ result: DataType,
    _ extras: [DataType]
  ) -> ProductTypes? {
    if anchor is BlockQuantizedMatMul, ElementAccess.supports(result, .current) {
      return ProductTypes(.float32, result: result, operands: extras)
    }
    let sum =
      (anchor as? Conv)?.sumType ?? (anchor as? MatMul)?.sumType
      ?? (anchor as? PhasedConvTranspose)?.plain.sumType
    guard inputs.count == 2, let a = inputs.first??.dataType, let b = inputs.last??.dataType,
      ElementAccess.supports(result, .current)
    else { return nil }
    let kind: ProductKind
    switch (a, b, sum) {
    case (.float32, .float32, nil), (.float32, .float32, .float32): kind = .float32
    case (.float32, .float16, .float32): kind = .float16Weights
    case (.bfloat16, .bfloat16, .float32) where CPUDescription.fastTypes.contains(.bfloat16):
      kind = .bfloat16
    case (.uint8, .uint8, .int32) where anchor is MatMul && CPUDescription.fastTypes.contains(.uint8):
      kind = .int8
    case (.uint8, .int8, .int32): kind = .bytes(.current)
    default: return nil
    }
    return ProductTypes(kind, result: result, operands: extras)
  }

  /// Whether a product of bytes, after everything that is done to it before it is rounded, fits 32-bit integers.
  private static func stepsFit(
    _ epilogue: ScalarExpr, _ inputs: ArraySlice<Problem.Operand?>, _ extras: ArraySlice<Problem.Operand?>
  ) -> Bool {
    guard let a = inputs.first ?? nil, let b = inputs.last ?? nil, a.dataType == .uint8, b.dataType == .int8,
      let columns = b.shape.last, columns > 0, let steps = ScalarQuantization(epilogue)?.steps
    else { return false }
    // As if one column had all weights of a batch of matrices; twice that, for terms that are added to sums.
    let largest = Double(b.count / columns) * 255 * 128 * 2
    let extras = Array(extras)
    let interval = steps.interval { index in
      if index == 0 { return largest < 0x1p31 ? -largest...largest : nil }
      guard index <= extras.count, let operand = extras[index - 1] else { return nil }
      if let exponent = operand.largestExponent {
        let bound = Double(sign: .plus, exponent: exponent, significand: 1)
        return -bound...bound
      }
      guard operand.dataType.isInteger, operand.dataType.bitWidth <= 8 else { return nil }
      return Double(operand.dataType.integerRange.lowerBound)...Double(operand.dataType.integerRange.upperBound)
    }
    // Roundings of single precision are far less than a factor of two.
    return interval.map { $0.lowerBound > -0x1p30 && $0.upperBound < 0x1p30 } ?? false
  }

  private static func kind(_ operand: [Int], _ result: [Int]) -> EpilogueOperand? {
    let count = operand.reduce(1, *)
    if count == 1 { return .scalar }
    if operand == result { return .full }
    if count == result.last, operand.last == count { return .perColumn }
    return nil
  }
}

extension UnsafePointer<DeviceAddress> {
  /// The addresses from `index` on as the host pointers that they are on this backend.
  @inline(__always) func pointers(from index: Int) -> UnsafePointer<UnsafeRawPointer> {
    UnsafeRawPointer(self + index).assumingMemoryBound(to: UnsafeRawPointer.self)
  }
}
