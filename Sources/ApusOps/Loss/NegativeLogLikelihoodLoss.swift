// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Minus the log probability of each place's class (ONNX `NegativeLogLikelihoodLoss`): operands log
/// probabilities `[N, C, ...]`, classes `[N, ...]`, weights `[C]`.
public struct NegativeLogLikelihoodLoss: Operator {
  public static let name = "NegativeLogLikelihoodLoss"

  /// What becomes of the losses of all places.
  public enum Reduction: String, Sendable, Hashable, CaseIterable { case none, mean, sum }

  public var reduction: Reduction
  /// The class whose places do not count.
  public var ignoredClass: Int?

  /// Creates the operator.
  public init(reduction: Reduction = .mean, ignoredClass: Int? = nil) {
    self.reduction = reduction
    self.ignoredClass = ignoredClass
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    reduction = try attributes.choice("reduction", Reduction.mean)
    ignoredClass = nil
    if case .int(let number)? = attributes.value("ignored_class") { ignoredClass = number }
  }

  public var attributes: Attributes {
    var result: Attributes = ["reduction": .string(reduction.rawValue)]
    if let ignoredClass { result["ignored_class"] = .int(ignoredClass) }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let target = try inputs.tensor(1)
    try inputs.requireFloat(0)
    try inputs.requireInteger(1, "the classes")
    if let dims = x.dims, let others = target.dims,
      dims.count < 2 || others.count != dims.count - 1
    {
      throw ApusError(.typeMismatch, "classes \(target) for log probabilities \(x)")
    }
    return [typed(x.dataType, reduction == .none ? target.dims : [])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let target = try inputs.required(1)
    let weights = try inputs.optional(2)?.doubles()
    let (batch, classes) = (x.shape[0], x.shape[1])
    let places = x.shape[2...].reduce(1, *)
    guard target.shape == [batch] + x.shape[2...], weights.map({ $0.count == classes }) ?? true else {
      throw ApusError(.typeMismatch, "classes \(target.type) for log probabilities \(x.type)")
    }
    let values = x.doubles()
    var losses = [Double](repeating: 0, count: target.count)
    var total = 0.0
    for (index, label) in target.ints().enumerated() where label != ignoredClass {
      guard label >= 0, label < classes else {
        throw ApusError(.execution, "class \(label) is not one of \(classes)")
      }
      let weight = weights?[label] ?? 1
      let place = (index / places * classes + label) * places + index % places
      losses[index] = -values[place] * weight
      total += weight
    }
    switch reduction {
    case .none: return [.tensor(try Tensor(losses, x.dataType, shape: target.shape))]
    case .sum: return [.tensor(try Tensor([losses.reduce(0, +)], x.dataType, shape: []))]
    case .mean: return [.tensor(try Tensor([losses.reduce(0, +) / total], x.dataType, shape: []))]
    }
  }
}
