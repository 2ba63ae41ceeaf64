// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// One value for all elements along some axes. The axes are an attribute, or operand 1 where they
/// are known only at run time; without either all axes are reduced.
public struct Reduce: Operator, PermutableOperator, DataDependentShape, TolerantOperator {
  public static let name = "Reduce"
  /// How elements are combined.
  public enum Function: String, Sendable, CaseIterable {
    case sum, mean, max, min, prod, l1, l2, sumSquare, logSum, logSumExp
  }
  public var function: Function
  public var axes: [Int]?
  /// Whether reduced axes stay with size one.
  public var keepDims: Bool
  /// Whether an empty list of axes means none instead of all.
  public var noopWithEmptyAxes: Bool
  /// The type of the result where narrow numbers are combined in single precision; nil for the operand's own type.
  public var sumType: DataType?

  public init(
    function: Function, axes: [Int]? = nil, keepDims: Bool = true, noopWithEmptyAxes: Bool = false,
    sumType: DataType? = nil
  ) {
    self.sumType = sumType
    self.function = function
    self.axes = axes
    self.keepDims = keepDims
    self.noopWithEmptyAxes = noopWithEmptyAxes
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    let text = try attributes.string("function")
    guard let function = Function(rawValue: text) else {
      throw ApusError(.invalidAttribute, "there is no reduction '\(text)'")
    }
    self.function = function
    axes = try attributes.optionalInts("axes")
    keepDims = try attributes.bool("keepDims", true)
    noopWithEmptyAxes = try attributes.bool("noopWithEmptyAxes", false)
    sumType = try SumType.read(&attributes)
  }

  public var attributes: Attributes {
    var result: Attributes = ["function": .string(function.rawValue)]
    if let axes { result["axes"] = .ints(axes) }
    result["keepDims"] = .bool(keepDims)
    if noopWithEmptyAxes { result["noopWithEmptyAxes"] = .bool(true) }
    if let sumType { result["sum_type"] = .type(sumType) }
    return result
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { count > 1 ? [1] : [] }

  /// The axes that are reduced in an operand of this rank; `given` are those of operand 1.
  public func reducedAxes(_ given: [Int]?, rank: Int) throws(ApusError) -> [Int] {
    let list = given ?? axes ?? []
    if list.isEmpty { return noopWithEmptyAxes ? [] : Array(0..<rank) }
    return try Axis.resolved(list, rank: rank).sorted()
  }

  /// Sums of many numbers of both signs are small beside what was summed.
  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    let shape = inputs.first??.shape ?? []
    let reduced = axes?.filter { shape.indices.contains($0 < 0 ? $0 + shape.count : $0) }
      .map { shape[$0 < 0 ? $0 + shape.count : $0] } ?? shape
    let count = Double(reduced.reduce(1, &*))
    let roundings = type == .float64 ? 1e-12 : type == .bfloat16 ? 2e-2 : type == .float16 ? 2e-3 : 2e-6
    return type.isFloat ? roundings * max(1, count.squareRoot() / 16) : 0
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    let result = try resultType(type.dataType)
    if inputs.has(1) { try inputs.requireInteger(1, "axes") }
    let given = inputs.has(1) ? inputs.ints(1) : nil
    guard let dims = type.dims, !inputs.has(1) || given != nil else {
      let dims = keepDims ? type.dims?.indices.map { inputs.freshDim("d\($0)") } : nil
      return [typed(result, dims)]
    }
    let reduced = try reducedAxes(given, rank: dims.count)
    let kept = dims.indices.filter { keepDims || !reduced.contains($0) }
    return [typed(result, kept.map { reduced.contains($0) ? 1 : dims[$0] })]
  }

  /// The result's type for elements of `type`.
  private func resultType(_ type: DataType) throws(ApusError) -> DataType {
    try Self.check(type, function)
    guard let sumType, sumType != type else { return type }
    guard sumType == .float32, type.isInteger || type.isFloat, type.bitWidth <= 16 else {
      throw ApusError(.typeMismatch, "elements of type \(type) are not combined as \(sumType)")
    }
    return sumType
  }

  private static func check(_ type: DataType, _ function: Function) throws(ApusError) {
    let isOrdered = function == .max || function == .min
    guard type.isFloat || type.isInteger || (type == .bool && isOrdered) else {
      throw ApusError(.typeMismatch, "elements of type \(type) have no \(function)")
    }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let type = try resultType(x.dataType)
    let given = try inputs.allTensors().optionalParameter(1, "axes")
    let reduced = try reducedAxes(given, rank: x.rank)
    let kept = x.shape.indices.filter { !reduced.contains($0) }
    let shape = x.shape.indices.filter { keepDims || !reduced.contains($0) }
      .map { reduced.contains($0) ? 1 : x.shape[$0] }
    let strides = CopyPlan.rowMajorStrides(x.shape)
    let starts = Self.places(kept.map { x.shape[$0] }, kept.map { strides[$0] })
    let steps = Self.places(reduced.map { x.shape[$0] }, reduced.map { strides[$0] })
    let isWhole = !type.isFloat
    if isWhole, [.sum, .prod, .max, .min, .l1, .sumSquare, .mean].contains(function) {
      let values = x.integers()
      let unsigned = x.dataType == .uint64
      if steps.isEmpty, function == .mean, !starts.isEmpty {
        throw ApusError(.execution, "the mean of no integers is not defined")
      }
      let range = x.dataType.integerRange
      let results = starts.map { start in
        whole(values, start, steps, unsigned, range)
      }
      return [.tensor(try Tensor(results, x.dataType, shape: shape))]
    }
    let values = x.doubles()
    return [.tensor(try Tensor(starts.map { real(values, $0, steps) }, type, shape: shape))]
  }

  /// The row-major sequence of positions in a box of these sizes and strides.
  private static func places(_ sizes: [Int], _ strides: [Int]) -> [Int] {
    var result = [0]
    for (size, stride) in zip(sizes, strides) {
      result = result.flatMap { base in (0..<size).map { base + $0 * stride } }
    }
    return result
  }

  private func real(_ x: [Double], _ start: Int, _ steps: [Int]) -> Double {
    func sum(_ body: (Double) -> Double) -> Double {
      steps.reduce(0) { $0 + body(x[start + $1]) }
    }
    switch function {
    case .sum: return sum { $0 }
    case .mean: return sum { $0 } / Double(steps.count)
    case .l1: return sum { abs($0) }
    case .l2: return sum { $0 * $0 }.squareRoot()
    case .sumSquare: return sum { $0 * $0 }
    case .logSum: return log(sum { $0 })
    case .prod: return steps.reduce(1) { $0 * x[start + $1] }
    case .max:
      return steps.reduce(-.infinity) {
        $0.isNaN || x[start + $1].isNaN ? .nan : Swift.max($0, x[start + $1])
      }
    case .min:
      return steps.reduce(.infinity) {
        $0.isNaN || x[start + $1].isNaN ? .nan : Swift.min($0, x[start + $1])
      }
    case .logSumExp:
      let top = steps.reduce(-.infinity) { Swift.max($0, x[start + $1]) }
      if !top.isFinite { return log(sum { exp($0) }) }
      return top + log(sum { exp($0 - top) })
    }
  }

  private func whole(
    _ x: [Int64], _ start: Int, _ steps: [Int], _ unsigned: Bool, _ range: ClosedRange<Int64>
  ) -> Int64 {
    func less(_ a: Int64, _ b: Int64) -> Bool {
      unsigned ? UInt64(bitPattern: a) < UInt64(bitPattern: b) : a < b
    }
    switch function {
    case .sum: return steps.reduce(0) { $0 &+ x[start + $1] }
    case .l1:
      return steps.reduce(0) {
        $0 &+ (unsigned || x[start + $1] >= 0 ? x[start + $1] : 0 &- x[start + $1])
      }
    case .sumSquare: return steps.reduce(0) { $0 &+ x[start + $1] &* x[start + $1] }
    case .prod: return steps.reduce(1) { $0 &* x[start + $1] }
    case .mean:
      let sum = steps.reduce(Int64(0)) { $0 &+ x[start + $1] }
      if unsigned {
        return Int64(bitPattern: UInt64(bitPattern: sum) / UInt64(Swift.max(1, steps.count)))
      }
      return sum / Int64(Swift.max(1, steps.count))
    case .max:
      return steps.reduce(unsigned ? 0 : range.lowerBound) {
        less($0, x[start + $1]) ? x[start + $1] : $0
      }
    case .min:
      return steps.reduce(unsigned ? -1 : range.upperBound) {
        less(x[start + $1], $0) ? x[start + $1] : $0
      }
    case .l2, .logSum, .logSumExp: return 0
    }
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    let rank = permutation.count
    guard keepDims, !inputs.has(1), inputs.count > 0, inputs.types[0]?.tensor?.rank == rank,
      Axis.isPermutation(permutation, rank: rank),
      let reduced = try? reducedAxes(nil, rank: rank)
    else { return nil }
    let places = reduced.compactMap { permutation.firstIndex(of: $0) }.sorted()
    return PermutedForm(
      op: Reduce(
        function: function, axes: places, keepDims: true, noopWithEmptyAxes: noopWithEmptyAxes,
        sumType: sumType),
      permutesInput: inputs.types.indices.map { $0 == 0 })
  }
}

extension Reduce: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard operands.onlyFirstIsBatched, let rank = operands.first??.rank, let axes, !axes.isEmpty else {
      return false
    }
    return axes.allSatisfy { $0 != 0 && $0 != -rank }
  }
}
