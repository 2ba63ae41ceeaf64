// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Normally distributed numbers (ONNX `RandomNormal`); no operands.
public struct RandomNormal: NondeterministicOperator {
  public static let name = "RandomNormal"
  public var shape: [Int]
  public var mean: Double
  public var scale: Double
  public var seed: Double?
  public var dataType: DataType

  /// Creates the operator.
  public init(
    shape: [Int], mean: Double = 0, scale: Double = 1, seed: Double? = nil,
    dataType: DataType = .float32
  ) {
    self.shape = shape
    self.mean = mean
    self.scale = scale
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    shape = try attributes.ints("shape")
    mean = try attributes.float("mean", 0)
    scale = try attributes.float("scale", 1)
    seed = try attributes.seed()
    dataType = try attributes.type("dtype", .float32)
  }

  public var attributes: Attributes {
    (["shape": .ints(shape), "mean": .float(mean), "scale": .float(scale)] as Attributes)
      .with(seed: seed, type: dataType)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    _ = try Tensor.checkedCount(shape)
    return [.tensor(TensorType(dataType, shape: shape))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let distribution = RandomDistribution.normal(mean: mean, scale: scale)
    return [.tensor(try distribution.tensor(shape, dataType, seed: seed))]
  }
}

/// Uniformly distributed numbers (ONNX `RandomUniform`); no operands.
public struct RandomUniform: NondeterministicOperator {
  public static let name = "RandomUniform"
  public var shape: [Int]
  public var low: Double
  public var high: Double
  public var seed: Double?
  public var dataType: DataType

  /// Creates the operator.
  public init(
    shape: [Int], low: Double = 0, high: Double = 1, seed: Double? = nil,
    dataType: DataType = .float32
  ) {
    self.shape = shape
    self.low = low
    self.high = high
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    shape = try attributes.ints("shape")
    low = try attributes.float("low", 0)
    high = try attributes.float("high", 1)
    seed = try attributes.seed()
    dataType = try attributes.type("dtype", .float32)
  }

  public var attributes: Attributes {
    (["shape": .ints(shape), "low": .float(low), "high": .float(high)] as Attributes)
      .with(seed: seed, type: dataType)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    _ = try Tensor.checkedCount(shape)
    return [.tensor(TensorType(dataType, shape: shape))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let distribution = RandomDistribution.uniform(low: low, high: high)
    return [.tensor(try distribution.tensor(shape, dataType, seed: seed))]
  }
}

/// Normally distributed numbers in the operand's shape (ONNX `RandomNormalLike`).
public struct RandomNormalLike: NondeterministicOperator {
  public static let name = "RandomNormalLike"
  public var mean: Double
  public var scale: Double
  public var seed: Double?
  /// The element type when it is not the operand's.
  public var dataType: DataType?

  /// Creates the operator.
  public init(
    mean: Double = 0, scale: Double = 1, seed: Double? = nil, dataType: DataType? = nil
  ) {
    self.mean = mean
    self.scale = scale
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    mean = try attributes.float("mean", 0)
    scale = try attributes.float("scale", 1)
    seed = try attributes.seed()
    dataType = try attributes.optionalType("dtype")
  }

  public var attributes: Attributes {
    (["mean": .float(mean), "scale": .float(scale)] as Attributes).with(seed: seed, type: dataType)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    return [typed(dataType ?? x.dataType, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let distribution = RandomDistribution.normal(mean: mean, scale: scale)
    return [.tensor(try distribution.tensor(x.shape, dataType ?? x.dataType, seed: seed))]
  }
}

/// Uniformly distributed numbers in the operand's shape (ONNX `RandomUniformLike`).
public struct RandomUniformLike: NondeterministicOperator {
  public static let name = "RandomUniformLike"
  public var low: Double
  public var high: Double
  public var seed: Double?
  /// The element type when it is not the operand's.
  public var dataType: DataType?

  /// Creates the operator.
  public init(low: Double = 0, high: Double = 1, seed: Double? = nil, dataType: DataType? = nil) {
    self.low = low
    self.high = high
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    low = try attributes.float("low", 0)
    high = try attributes.float("high", 1)
    seed = try attributes.seed()
    dataType = try attributes.optionalType("dtype")
  }

  public var attributes: Attributes {
    (["low": .float(low), "high": .float(high)] as Attributes).with(seed: seed, type: dataType)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    return [typed(dataType ?? x.dataType, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let distribution = RandomDistribution.uniform(low: low, high: high)
    return [.tensor(try distribution.tensor(x.shape, dataType ?? x.dataType, seed: seed))]
  }
}

/// One with the operand's probability, else zero (ONNX `Bernoulli`).
public struct Bernoulli: NondeterministicOperator {
  public static let name = "Bernoulli"
  public var seed: Double?
  /// The element type when it is not the operand's.
  public var dataType: DataType?

  /// Creates the operator.
  public init(seed: Double? = nil, dataType: DataType? = nil) {
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    seed = try attributes.seed()
    dataType = try attributes.optionalType("dtype")
  }

  public var attributes: Attributes { Attributes().with(seed: seed, type: dataType) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let type = dataType ?? x.dataType
    guard x.dataType.isFloat, type != .string else {
      throw ApusError(.typeMismatch, "Bernoulli of \(x) as \(type)")
    }
    return [typed(type, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    var source = RandomSource(seed: seed)
    let values = x.doubles().map { source.uniform() < $0 ? Int64(1) : 0 }
    return [.tensor(try Tensor(values, dataType ?? x.dataType, shape: x.shape))]
  }
}

/// Draws classes from logarithmic probabilities `[batch, classes]` (ONNX `Multinomial`); the result is
/// `[batch, sampleSize]`.
public struct Multinomial: NondeterministicOperator {
  public static let name = "Multinomial"
  public var sampleSize: Int
  public var seed: Double?
  /// `int32` or `int64`.
  public var dataType: DataType

  /// Creates the operator.
  public init(sampleSize: Int = 1, seed: Double? = nil, dataType: DataType = .int32) {
    self.sampleSize = sampleSize
    self.seed = seed
    self.dataType = dataType
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    sampleSize = try attributes.int("sample_size", 1)
    seed = try attributes.seed()
    dataType = try attributes.type("dtype", .int32)
  }

  public var attributes: Attributes {
    (["sample_size": .int(sampleSize)] as Attributes).with(seed: seed, type: dataType)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat, dataType.isInteger, sampleSize >= 0, x.rank.map({ $0 == 2 }) ?? true
    else { throw ApusError(.typeMismatch, "\(sampleSize) samples of \(x) as \(dataType)") }
    return [typed(dataType, x.dims.map { [$0[0], Dim(sampleSize)] })]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let (batch, classes) = (x.shape[0], x.shape[1])
    let shape = [batch, sampleSize]
    _ = try Tensor(dataType, shape: shape)
    guard classes > 0 || batch == 0 else { throw ApusError(.execution, "there are no classes") }
    let logs = x.doubles()
    var source = RandomSource(seed: seed)
    var drawn: [Int64] = []
    for row in 0..<batch {
      let line = logs[(row * classes)..<((row + 1) * classes)]
      let largest = line.max() ?? 0
      var sums: [Double] = []
      for value in line { sums.append((sums.last ?? 0) + RealMath.exponential(value - largest)) }
      for _ in 0..<sampleSize {
        let at = source.uniform() * (sums.last ?? 0)
        drawn.append(Int64(sums.firstIndex { at < $0 } ?? classes - 1))
      }
    }
    return [.tensor(try Tensor(drawn, dataType, shape: shape))]
  }
}
