// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Elements looked up in a table (ai.onnx.ml `LabelEncoder`).
public struct LabelEncoder: Operator {
  public static let name = "LabelEncoder"
  public var keys: Tensor
  public var values: Tensor
  /// One element: what stands for elements that are no key.
  public var missing: Tensor

  /// Creates the operator; `values` has an element for each key, `missing` one of the same type.
  public init(keys: Tensor, values: Tensor, missing: Tensor) throws(ApusError) {
    guard keys.count == values.count, missing.count == 1, missing.dataType == values.dataType else {
      throw ApusError(
        .invalidAttribute, "\(keys.count) keys, \(values.count) values, and for the rest \(missing.type)")
    }
    self.keys = keys
    self.values = values
    self.missing = missing
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    try self.init(
      keys: try attributes.tensor("keys"), values: try attributes.tensor("values"),
      missing: try attributes.tensor("missing"))
  }

  public var attributes: Attributes {
    ["keys": .tensor(keys), "values": .tensor(values), "missing": .tensor(missing)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard (x.dataType == .string) == (keys.dataType == .string) else {
      throw ApusError(.typeMismatch, "elements are \(x), keys \(keys.dataType)")
    }
    return [typed(values.dataType, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    var result = try ElementBuffer(values.dataType, shape: x.shape)
    let found = Self.texts(x)
    var known: [String: Int] = [:]
    for (index, key) in Self.texts(keys).enumerated() where known[key] == nil { known[key] = index }
    let places = found.map { known[$0] }
    let hits = places.indices.filter { places[$0] != nil }
    let others = places.indices.filter { places[$0] == nil }
    result.copy(from: values, count: hits.count) { (hits[$0], places[hits[$0]] ?? 0) }
    result.copy(from: missing, count: others.count) { (others[$0], 0) }
    return [.tensor(try result.finished())]
  }

  /// Elements as texts that are equal when the elements are.
  private static func texts(_ tensor: Tensor) -> [String] {
    if tensor.dataType == .string { return tensor.strings }
    // Adding zero makes the two zeros one.
    return tensor.doubles().map { "\($0 + 0)" }
  }
}
