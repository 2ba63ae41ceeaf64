// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Root-mean-square normalisation (ONNX `RMSNormalization`; Zhang and Sennrich, 2019): operands X and
/// scale; `x / sqrt(mean(x^2) + epsilon) * scale` over all axes from `axis` on.
public struct RMSNormalization: CostedOperator {
  public static let name = "RMSNormalization"
  public var axis: Int
  public var epsilon: Double

  /// Creates the operator.
  public init(axis: Int = -1, epsilon: Double = 1e-5) {
    self.axis = axis
    self.epsilon = epsilon
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -1)
    epsilon = try attributes.float("epsilon", 1e-5)
  }

  public var attributes: Attributes { ["axis": .int(axis), "epsilon": .float(epsilon)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let scale = try inputs.tensor(1)
    guard x.dataType.isFloat, scale.dataType.isFloat else {
      throw ApusError(.typeMismatch, "RMSNormalization of \(x) with \(scale)")
    }
    if let rank = x.rank {
      _ = try Axis.resolved(axis, rank: rank)
      if let other = scale.rank, other > rank {
        throw ApusError(.typeMismatch, "a scale \(scale) for the input \(x)")
      }
    }
    return [typed(scale.dataType, x.dims)]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    (outputs.first?.shape ?? []).reduce(5.0) { $0 * Double($1) }
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let scale = try inputs.required(1)
    guard try Broadcasting.shape([x.shape, scale.shape]) == x.shape else {
      throw ApusError(.typeMismatch, "a scale \(scale.type) for the input \(x.type)")
    }
    let axis = try Axis.resolved(axis, rank: x.rank)
    let width = x.shape[axis...].reduce(1, *)
    let factors = Broadcasting.expand(scale.doubles(), scale.shape, to: x.shape)
    var values = x.doubles()
    for row in 0..<(width == 0 ? 0 : values.count / width) {
      let range = (row * width)..<((row + 1) * width)
      let square = values[range].reduce(0) { $0 + $1 * $1 } / Double(width)
      let inverse = 1 / (square + epsilon).squareRoot()
      for index in range { values[index] *= inverse * factors[index] }
    }
    return [.tensor(try Tensor(values, scale.dataType, shape: x.shape))]
  }
}

/// What normalisations over groups of channels share.
enum GroupStatistics {
  /// Checks X `[N, C, ...]` with a scale and a bias for each channel.
  static func infer(_ inputs: InferenceInputs, groups: Int?) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat, x.rank.map({ $0 >= 2 }) ?? true else {
      throw ApusError(.typeMismatch, "the input \(x) has no channels or no numbers")
    }
    let channels = x.dims?[1].value
    if let groups {
      guard groups > 0, channels.map({ $0 % groups == 0 }) ?? true else {
        throw ApusError(.invalidAttribute, "\(groups) groups do not divide the channels of \(x)")
      }
    }
    for index in 1...2 {
      let parameter = try inputs.tensor(index)
      guard parameter.dataType.isFloat, parameter.rank.map({ $0 == 1 }) ?? true else {
        throw ApusError(.typeMismatch, "operand \(index) is \(parameter)")
      }
      if let channels, let size = parameter.shape?.first, size != channels {
        throw ApusError(.typeMismatch, "operand \(index) has \(size) elements for \(channels) channels")
      }
    }
    return [.tensor(x)]
  }

  /// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, statistics over the channels of a group
  /// and all spatial axes.
  static func normalize(_ inputs: [RuntimeValue?], groups: Int?, epsilon: Double) throws(ApusError)
    -> [RuntimeValue]
  {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }), groups: groups)
    let x = try inputs.required(0)
    let scale = try inputs.required(1).doubles()
    let bias = try inputs.required(2).doubles()
    var values = x.doubles()
    let channels = x.shape[1]
    let inner = x.shape[2...].reduce(1, *)
    let perGroup = channels / (groups ?? max(1, channels)) * inner
    for start in stride(from: 0, to: values.count, by: max(1, perGroup)) {
      let range = start..<(start + perGroup)
      let mean = values[range].reduce(0, +) / Double(perGroup)
      let variance = values[range].reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(perGroup)
      let inverse = 1 / (variance + epsilon).squareRoot()
      for index in range {
        let c = index / inner % channels
        values[index] = (values[index] - mean) * inverse * scale[c] + bias[c]
      }
    }
    return [.tensor(try Tensor(values, x.dataType, shape: x.shape))]
  }
}

/// Normalisation of every channel of every sample (ONNX `InstanceNormalization`; Ulyanov et al.,
/// 2016): operands X `[N, C, ...]`, scale and bias `[C]`.
public struct InstanceNormalization: Operator {
  public static let name = "InstanceNormalization"
  public var epsilon: Double

  /// Creates the operator.
  public init(epsilon: Double = 1e-5) { self.epsilon = epsilon }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    epsilon = try attributes.float("epsilon", 1e-5)
  }

  public var attributes: Attributes { ["epsilon": .float(epsilon)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try GroupStatistics.infer(inputs, groups: nil)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try GroupStatistics.normalize(inputs, groups: nil, epsilon: epsilon)
  }
}

/// Normalisation of groups of channels of every sample (ONNX `GroupNormalization`-21; Wu and He,
/// 2018): operands X `[N, C, ...]`, scale and bias `[C]`.
public struct GroupNormalization: Operator {
  public static let name = "GroupNormalization"
  public var groups: Int
  public var epsilon: Double

  /// Creates the operator.
  public init(groups: Int, epsilon: Double = 1e-5) {
    self.groups = groups
    self.epsilon = epsilon
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    groups = try attributes.int("groups")
    epsilon = try attributes.float("epsilon", 1e-5)
  }

  public var attributes: Attributes { ["groups": .int(groups), "epsilon": .float(epsilon)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try GroupStatistics.infer(inputs, groups: groups)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try GroupStatistics.normalize(inputs, groups: groups, epsilon: epsilon)
  }
}
