// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// How an update is combined with what is already there.
public enum ScatterReduction: String, Sendable {
  case none, add, mul, max, min

  fileprivate var function: BinaryFunction? {
    switch self {
    case .none: nil
    case .add: .add
    case .mul: .multiply
    case .max: .maximum
    case .min: .minimum
    }
  }
}

/// Writing updates into a copy of a tensor.
private enum Scattering {
  /// `data` with runs of `length` elements, one per start, replaced by or combined with those of
  /// `updates`, in order.
  static func apply(
    _ data: Tensor, _ updates: Tensor, _ starts: [Int], length: Int, _ reduction: ScatterReduction
  ) throws(ApusError) -> Tensor {
    guard updates.dataType == data.dataType else {
      throw ApusError(
        .typeMismatch, "updates are \(updates.dataType), the data is \(data.dataType)")
    }
    guard updates.count == starts.count &* length else {
      throw ApusError(
        .typeMismatch,
        "updates of shape \(updates.shape) do not fit \(starts.count) slices of \(length)")
    }
    guard let function = reduction.function else {
      var result = try ElementBuffer(copying: data)
      result.copyRuns(from: updates, length: length, count: starts.count) {
        (starts[$0], $0 &* length)
      }
      return try result.finished()
    }
    guard data.dataType != .string, !data.dataType.isComplex else {
      throw ApusError(.typeMismatch, "\(data.dataType) cannot be combined by '\(reduction)'")
    }
    let combine = ScalarExpr.binary(function, .input(0), .input(1))
    // Updates of one place follow each other; those of different places go in one evaluation.
    var rounds: [[(target: Int, source: Int)]] = []
    var depth: [Int: Int] = [:]
    for (entry, start) in starts.enumerated() {
      for offset in 0..<length {
        let round = depth[start + offset, default: 0]
        depth[start + offset] = round + 1
        if round == rounds.count { rounds.append([]) }
        rounds[round].append((start + offset, entry * length + offset))
      }
    }
    var current = data
    for round in rounds {
      var old = try ElementBuffer(data.dataType, shape: [round.count])
      old.copy(from: current, count: round.count) { ($0, round[$0].target) }
      var new = try ElementBuffer(data.dataType, shape: [round.count])
      new.copy(from: updates, count: round.count) { ($0, round[$0].source) }
      let combined = try PointwiseReference.evaluate(
        combine, data.dataType, [old.finished(), new.finished()])
      var result = try ElementBuffer(copying: current)
      result.copy(from: combined, count: round.count) { (round[$0].target, $0) }
      current = try result.finished()
    }
    return current
  }

  static func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "indices")
    guard try inputs.tensor(2).dataType == type.dataType else {
      throw ApusError(.typeMismatch, "the updates must be \(type.dataType)")
    }
    return [.tensor(type)]
  }
}

/// Operand 0 with the elements that operand 1 names along an axis replaced by those of operand 2.
public struct ScatterElements: Operator {
  public static let name = "ScatterElements"
  public var axis: Int
  public var reduction: ScatterReduction

  public init(axis: Int = 0, reduction: ScatterReduction = .none) {
    self.axis = axis
    self.reduction = reduction
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", 0)
    reduction = try attributes.choice("reduction", .none)
  }

  public var attributes: Attributes {
    ["axis": .int(axis), "reduction": .string(reduction.rawValue)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    if let rank = try inputs.tensor(0).rank { _ = try Axis.resolved(axis, rank: rank) }
    return try Scattering.infer(inputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let data = try inputs.required(0)
    let indices = try inputs.required(1)
    let updates = try inputs.required(2)
    guard updates.shape == indices.shape else {
      throw ApusError(
        .typeMismatch, "updates \(updates.shape) and indices \(indices.shape) differ in shape")
    }
    let places = try GatherElements.places(data.shape, indices, axis: axis)
    return [.tensor(try Scattering.apply(data, updates, places, length: 1, reduction))]
  }
}

/// Operand 0 with the slices that the index vectors of operand 1 name replaced by those of operand 2.
public struct ScatterND: Operator {
  public static let name = "ScatterND"
  public var reduction: ScatterReduction

  public init(reduction: ScatterReduction = .none) { self.reduction = reduction }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    reduction = try attributes.choice("reduction", .none)
  }

  public var attributes: Attributes { ["reduction": .string(reduction.rawValue)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try Scattering.infer(inputs)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let data = try inputs.required(0)
    let indices = try inputs.required(1)
    let updates = try inputs.required(2)
    guard let depth = indices.shape.last, depth <= data.rank,
      updates.shape == Array(indices.shape.dropLast() + data.shape[depth...])
    else {
      throw ApusError(
        .typeMismatch,
        "indices \(indices.shape) and updates \(updates.shape) do not fit \(data.shape)")
    }
    let inner = data.shape[depth...].reduce(1, &*)
    let starts = try GatherND.starts(
      Array(data.shape[..<depth]), indices, count: indices.shape.dropLast().reduce(1, &*))
    return [
      .tensor(
        try Scattering.apply(data, updates, starts.map { $0 &* inner }, length: inner, reduction))
    ]
  }
}
