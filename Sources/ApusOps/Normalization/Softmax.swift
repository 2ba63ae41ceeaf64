// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// What the three functions over one axis share.
protocol AxisFunction: PermutableOperator, CostedOperator {
  var axis: Int { get }
  init(axis: Int)
  /// The function of one line of elements.
  static func apply(_ line: inout [Double])
}

extension AxisFunction {
  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    self.init(axis: try attributes.int("axis", -1))
  }

  public var attributes: Attributes { ["axis": .int(axis)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat else {
      throw ApusError(.typeMismatch, "\(Self.name) of elements of type \(x.dataType)")
    }
    if let rank = x.rank, rank > 0 { _ = try Axis.resolved(axis, rank: rank) }
    return [.tensor(x)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    (outputs.first?.shape ?? []).reduce(8.0) { $0 * Double($1) }
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    let rank = permutation.count
    guard let resolved = try? Axis.resolved(axis, rank: rank),
      let moved = permutation.firstIndex(of: resolved)
    else { return nil }
    return PermutedForm(op: Self(axis: moved), permutesInput: [true])
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    var values = x.doubles()
    guard x.rank > 0 else {
      Self.apply(&values)
      return [.tensor(try Tensor(values, x.dataType, shape: []))]
    }
    let (outer, size, inner) = Axis.split(x.shape, at: try Axis.resolved(axis, rank: x.rank))
    var line = [Double](repeating: 0, count: size)
    for o in 0..<outer {
      for i in 0..<inner where size > 0 {
        for s in 0..<size { line[s] = values[(o * size + s) * inner + i] }
        Self.apply(&line)
        for s in 0..<size { values[(o * size + s) * inner + i] = line[s] }
      }
    }
    return [.tensor(try Tensor(values, x.dataType, shape: x.shape))]
  }
}

/// `exp(x - max) / sum(exp(x - max))` along an axis (ONNX `Softmax`-13).
public struct Softmax: AxisFunction {
  public static let name = "Softmax"
  public let axis: Int

  /// Creates the operator.
  public init(axis: Int = -1) { self.axis = axis }

  static func apply(_ line: inout [Double]) {
    let largest = line.max() ?? 0
    var sum = 0.0
    for index in line.indices {
      line[index] = RealMath.exponential(line[index] - largest)
      sum += line[index]
    }
    for index in line.indices { line[index] /= sum }
  }
}

/// The logarithm of `Softmax` (ONNX `LogSoftmax`-13).
public struct LogSoftmax: AxisFunction {
  public static let name = "LogSoftmax"
  public let axis: Int

  /// Creates the operator.
  public init(axis: Int = -1) { self.axis = axis }

  static func apply(_ line: inout [Double]) {
    let largest = line.max() ?? 0
    let sum = line.reduce(0) { $0 + RealMath.exponential($1 - largest) }
    let shift = largest + RealMath.logarithm(sum)
    for index in line.indices { line[index] -= shift }
  }
}

/// One at the first largest element, zero elsewhere (ONNX `Hardmax`-13).
public struct Hardmax: AxisFunction {
  public static let name = "Hardmax"
  public let axis: Int

  /// Creates the operator.
  public init(axis: Int = -1) { self.axis = axis }

  static func apply(_ line: inout [Double]) {
    var best = 0
    for index in line.indices where line[index] > line[best] { best = index }
    for index in line.indices { line[index] = index == best ? 1 : 0 }
  }
}

extension AxisFunction {
  public func isOverRows(_ inputs: [TensorType?]) -> Bool {
    guard let x = inputs.first ?? nil, let rank = x.rank, rank > 0 else { return false }
    return x.dataType == .float32 && (axis == -1 || axis == rank - 1)
  }
}

extension Softmax: RowOperator {}
extension LogSoftmax: RowOperator {}

extension Softmax: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched && axis != 0 && axis != -resultRank
  }
}
