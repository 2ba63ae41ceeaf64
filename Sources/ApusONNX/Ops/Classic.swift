// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Classic machine learning (`ai.onnx.ml`).
  mutating func addClassic() {
    let domain = "ai.onnx.ml"
    on("Binarizer", since: 1, domain: domain) { (node) throws(ApusError) in
      let type = try node.tensorType(0).dataType
      let limit = try node.scalar(try node.attributes.float("threshold", 0), type)
      let isAbove = try node.emit(Greater(), [try node.operand(0), limit])
      return try node.result(Cast(to: type), [isAbove])
    }
    on("ArrayFeatureExtractor", since: 1, domain: domain) { (node) throws(ApusError) in
      let flat = try node.emit(Reshape(), [try node.operand(1), try node.vector([-1])])
      // A vector counts as one row.
      if try node.rank(0) == 1 {
        let row = try node.emit(Unsqueeze(), [try node.operand(0), try node.vector([0])])
        return try node.result(Gather(axis: 1), [row, flat])
      }
      return try node.result(Gather(axis: -1), [try node.operand(0), flat])
    }
    op("LabelEncoder", since: 2, domain: domain) { (node) throws(ApusError) in try node.labels() }
    op("TreeEnsemble", since: 5, domain: domain) { (node) throws(ApusError) in try node.trees() }
  }
}

extension NodeImport {
  /// A list that is given as texts, integers, numbers or a tensor.
  private func list(_ name: String) throws(ApusError) -> Tensor? {
    if let tensor = try attributes.tensor("\(name)_tensor") { return tensor }
    if attributes.has("\(name)_strings") {
      let texts = try attributes.strings("\(name)_strings")
      return try Tensor(strings: texts, shape: [texts.count])
    }
    if attributes.has("\(name)_int64s") { return try .vector(try attributes.ints("\(name)_int64s")) }
    if attributes.has("\(name)_floats") {
      let numbers = try attributes.floats("\(name)_floats")
      return try Tensor(numbers, .float32, shape: [numbers.count])
    }
    return nil
  }

  fileprivate func labels() throws(ApusError) -> LabelEncoder {
    guard let keys = try list("keys"), let values = try list("values") else {
      throw ApusError(.invalidAttribute, "the keys or the values are missing")
    }
    let text = try attributes.string("default_string", "_Unused")
    let integer = try attributes.int("default_int64", -1)
    let number = try attributes.float("default_float", -0.0)
    let given = try attributes.tensor("default_tensor")
    let missing: Tensor
    if let given, given.dataType == values.dataType {
      missing = given
    } else if values.dataType == .string {
      missing = try Tensor(strings: [text], shape: [1])
    } else {
      missing = try .scalar(values.dataType.isFloat ? number : Double(integer), values.dataType)
    }
    return try LabelEncoder(keys: keys, values: values, missing: missing)
  }

  fileprivate func trees() throws(ApusError) -> TreeEnsemble {
    guard try attributes.int("post_transform", 0) == 0 else {
      throw ApusError(.notYetSupported, "TreeEnsemble with 'post_transform'")
    }
    attributes.ignore("nodes_hitrates")
    var tables = TreeEnsemble.Tables()
    tables.features = try attributes.ints("nodes_featureids")
    tables.comparisons = try numbers("nodes_modes").map { Int(exactly: $0) ?? -1 }
    tables.splits = try numbers("nodes_splits")
    tables.trueNodes = try attributes.ints("nodes_truenodeids")
    tables.falseNodes = try attributes.ints("nodes_falsenodeids")
    tables.trueIsLeaf = try attributes.ints("nodes_trueleafs")
    tables.falseIsLeaf = try attributes.ints("nodes_falseleafs")
    tables.missingIsTrue = try attributes.ints("nodes_missing_value_tracks_true", [])
    tables.members = try attributes.has("membership_values") ? numbers("membership_values") : []
    tables.leafTargets = try attributes.ints("leaf_targetids")
    tables.leafWeights = try numbers("leaf_weights")
    tables.roots = try attributes.ints("tree_roots")
    guard let aggregate = TreeEnsemble.Aggregate(
      rawValue: try attributes.int("aggregate_function", 1))
    else { throw ApusError(.invalidAttribute, "'aggregate_function' is not 0 to 3") }
    return try TreeEnsemble(
      tables: tables, targets: try attributes.int("n_targets", 1), aggregate: aggregate)
  }

  private func numbers(_ name: String) throws(ApusError) -> [Double] {
    guard let tensor = try attributes.tensor(name) else {
      throw ApusError(.invalidAttribute, "attribute '\(name)' is missing")
    }
    return tensor.doubles()
  }
}
