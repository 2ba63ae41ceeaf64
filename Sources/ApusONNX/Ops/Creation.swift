// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Constants, conversions, shapes and generated tensors.
  mutating func addCreation() {
    on("Constant", since: 1) { (node) throws(ApusError) in
      [node.add(try node.constantTensor(), isResult: true)]
    }
    op("ConstantOfShape", since: 9) { (node) throws(ApusError) in
      let value = try node.attributes.tensor("value")
      guard let value else { return ConstantOfShape(value: try .scalar(0, .float32)) }
      guard value.count == 1 else {
        throw ApusError(.invalidAttribute, "'value' has \(value.count) elements, expected one")
      }
      return ConstantOfShape(value: value)
    }
    op("Shape", since: 1) { _ in Shape() }
    op("Shape", since: 15) { (node) throws(ApusError) in
      Shape(
        start: try node.attributes.int("start", 0), end: try node.attributes.optionalInt("end"))
    }
    op("Size", since: 1) { _ in Size() }
    op("Range", since: 11) { _ in NumberRange() }
    op("EyeLike", since: 9) { (node) throws(ApusError) in
      EyeLike(
        dataType: try node.attributes.dataType("dtype"),
        diagonal: try node.attributes.int("k", 0))
    }
    op("Cast", since: 6) { (node) throws(ApusError) in
      guard let type = try node.attributes.dataType("to") else {
        throw ApusError(.invalidAttribute, "attribute 'to' is missing")
      }
      return Cast(
        to: type, saturate: try node.attributes.flag("saturate", true),
        powerRounding: try node.choice("round_mode", Cast.PowerRounding.up))
    }
    on("CastLike", since: 15) { (node) throws(ApusError) in
      let type = try node.tensorType(1).dataType
      node.attributes.ignore("round_mode")
      let saturate = try node.attributes.flag("saturate", true)
      return try node.result(Cast(to: type, saturate: saturate), [try node.operand(0)])
    }
    on("Dropout", since: 7) { (node) throws(ApusError) in
      node.attributes.ignore("ratio", "is_test")
      let x = try node.operand(0)
      if let training = node.optional(2) {
        let isOff = node.constant(training).map { $0.count == 1 && $0.integers()[0] == 0 } ?? false
        if !isOff { return try node.dropout(x, training) }
      }
      // Inference: nothing is dropped.
      node.attributes.ignore("seed")
      var results = try node.result(Identity(), [x], outputCount: 1)
      if node.outputCount > 1 {
        let shape = try node.emit(Shape(), [x])
        let one = try Tensor([Int64(1)], .bool, shape: [1])
        results.append(try node.emit(ConstantOfShape(value: one), [shape]))
      }
      return results
    }
  }
}

extension NodeImport {
  /// Elements dropped at random, the others made larger, if `training` says so.
  fileprivate func dropout(_ x: ValueID, _ training: ValueID) throws(ApusError) -> [ValueID] {
    let type = try tensorType(0).dataType
    let share: ValueID
    if let ratio = optional(1) {
      share = try emit(Cast(to: type), [ratio])
    } else {
      share = try scalar(0.5, type)
    }
    let seed = try attributes.optionalInt("seed").map { Double($0) }
    let drawn = try emit(RandomUniformLike(seed: seed, dataType: type), [x])
    let isKept = try emit(GreaterOrEqual(), [drawn, share])
    let factor = try emit(Sub(), [try scalar(1, type), share])
    let grown = try emit(Div(), [x, factor])
    let dropped = try emit(Where(), [isKept, grown, try scalar(0, type)])
    let y = try emit(Where(), [training, dropped, x])
    let mask = try emit(Or(), [isKept, try emit(Not(), [training])])
    return Array([y, mask].prefix(max(1, outputCount)))
  }

  /// The tensor that a Constant node holds in one of its many forms.
  fileprivate func constantTensor() throws(ApusError) -> Tensor {
    if let value = try attributes.tensor("value") { return value }
    if let value = try attributes.sparseTensor("sparse_value") { return value }
    if let value = try attributes.optionalInt("value_int") {
      return try Tensor([Int64(value)], .int64, shape: [])
    }
    if let values = try attributes.optionalInts("value_ints") { return try .vector(values) }
    if let value = try attributes.optionalFloat("value_float") {
      return try .scalar(value, .float32)
    }
    if attributes.has("value_floats") {
      let values = try attributes.floats("value_floats")
      return try Tensor(values, .float32, shape: [values.count])
    }
    if attributes.has("value_string") {
      return try Tensor(strings: [try attributes.string("value_string")], shape: [])
    }
    if attributes.has("value_strings") {
      let values = try attributes.strings("value_strings")
      return try Tensor(strings: values, shape: [values.count])
    }
    throw ApusError(.invalidAttribute, "the constant has no value")
  }
}
