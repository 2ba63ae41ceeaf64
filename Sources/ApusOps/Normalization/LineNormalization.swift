// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Division by the p-norm along an axis (ONNX `LpNormalization`); lines of zeros stay zero.
public struct LpNormalization: Operator {
  public static let name = "LpNormalization"
  public var axis: Int
  /// One or two.
  public var p: Int

  /// Creates the operator.
  public init(axis: Int = -1, p: Int = 2) {
    self.axis = axis
    self.p = p
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -1)
    p = try attributes.int("p", 2)
  }

  public var attributes: Attributes { ["axis": .int(axis), "p": .int(p)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat else { throw ApusError(.typeMismatch, "LpNormalization of \(x)") }
    guard p == 1 || p == 2 else { throw ApusError(.invalidAttribute, "'p' is \(p), not 1 or 2") }
    if let rank = x.rank { _ = try Axis.resolved(axis, rank: rank) }
    return [.tensor(x)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    var values = x.doubles()
    let (outer, size, inner) = Axis.split(x.shape, at: try Axis.resolved(axis, rank: x.rank))
    for o in 0..<outer {
      for i in 0..<inner {
        var sum = 0.0
        for s in 0..<size {
          let value = values[(o * size + s) * inner + i]
          sum += p == 1 ? abs(value) : value * value
        }
        let norm = p == 1 ? sum : sum.squareRoot()
        if norm == 0 { continue }
        for s in 0..<size { values[(o * size + s) * inner + i] /= norm }
      }
    }
    return [.tensor(try Tensor(values, x.dataType, shape: x.shape))]
  }
}

/// `(x - mean) / (deviation + 1e-9)` over the given axes (ONNX `MeanVarianceNormalization`).
public struct MeanVarianceNormalization: Operator {
  public static let name = "MeanVarianceNormalization"
  public var axes: [Int]

  /// Creates the operator.
  public init(axes: [Int] = [0, 2, 3]) { self.axes = axes }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axes = try attributes.ints("axes", [0, 2, 3])
  }

  public var attributes: Attributes { ["axes": .ints(axes)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat else {
      throw ApusError(.typeMismatch, "MeanVarianceNormalization of \(x)")
    }
    if let rank = x.rank { _ = try Axis.resolved(axes, rank: rank) }
    return [.tensor(x)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let axes = try Axis.resolved(axes, rank: x.rank)
    var values = x.doubles()
    // The line every element belongs to.
    let kept = (0..<x.rank).filter { !axes.contains($0) }
    let keptStrides = CopyPlan.rowMajorStrides(kept.map { x.shape[$0] })
    let dense = CopyPlan.rowMajorStrides(x.shape)
    let lines = kept.reduce(1) { $0 * x.shape[$1] }
    func line(_ index: Int) -> Int {
      kept.indices.reduce(0) {
        $0 + index / dense[kept[$1]] % x.shape[kept[$1]] * keptStrides[$1]
      }
    }
    guard !values.isEmpty else { return [.tensor(x)] }
    let count = Double(values.count / lines)
    var means = [Double](repeating: 0, count: lines)
    var squares = means
    let homes = values.indices.map(line)
    for index in values.indices { means[homes[index]] += values[index] / count }
    for index in values.indices {
      let distance = values[index] - means[homes[index]]
      squares[homes[index]] += distance * distance / count
    }
    for index in values.indices {
      let home = homes[index]
      values[index] = (values[index] - means[home]) / (squares[home].squareRoot() + 1e-9)
    }
    return [.tensor(try Tensor(values, x.dataType, shape: x.shape))]
  }
}
