// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusProto

/// What all graphs of one imported model share.
final class ImportSession {
  let file: ModelFile
  let table: ONNXOperatorTable
  let decoder: TensorDecoder
  private var functions: [String: ONNXFunctionProto] = [:]

  init(_ file: ModelFile, table: ONNXOperatorTable) throws(ApusError) {
    self.file = file
    self.table = table
    decoder = TensorDecoder(file)
    for function in file.model.functions {
      let key = Self.functionKey(function.domain, function.name, function.overload)
      guard functions.updateValue(function, forKey: key) == nil else {
        throw ApusError(
          .malformedFile, "the model defines the function '\(key)' twice",
          location: GraphLocation(file: file.path))
      }
    }
  }

  static func functionKey(_ domain: String, _ name: String, _ overload: String) -> String {
    let key = ONNXOperatorTable.key(domain, name)
    return overload.isEmpty ? key : "\(key):\(overload)"
  }

  /// The model's own function that a node calls.
  func function(for node: ONNXNodeProto) -> ONNXFunctionProto? {
    guard !functions.isEmpty else { return nil }
    return functions[Self.functionKey(node.domain, node.opType, node.overload)]
  }

  /// The versions of the operator sets by domain; the standard domain is the empty name.
  static func versions(_ imports: [ONNXOperatorSetIdProto]) -> [String: Int] {
    var versions: [String: Int] = [:]
    for entry in imports {
      let domain = entry.domain == "ai.onnx" ? "" : entry.domain
      versions[domain] = max(versions[domain] ?? 0, Int(clamping: entry.version))
    }
    return versions
  }
}

/// The names visible to the nodes of one graph or of one inlined function.
final class ImportScope {
  /// Operator-set versions by domain.
  let versions: [String: Int]
  /// Values already made.
  var values: [String: ValueID] = [:]
  /// Constants of the file, decoded when first used.
  var tensors: [String: ONNXTensorProto] = [:]
  /// Sparse constants of the file.
  var sparseTensors: [String: ONNXSparseTensorProto] = [:]
  /// The inputs of the function being inlined that the call leaves out.
  var omitted: Set<String> = []
  /// What the attributes of the function being inlined are bound to; nil outside functions.
  let attributes: [String: ONNXAttributeProto]?
  /// The functions being inlined, outermost first.
  let calls: [String]
  /// Goes before the names of nodes and values.
  let prefix: String
  /// The path of subgraphs and functions, for messages.
  let path: String?

  init(
    versions: [String: Int], attributes: [String: ONNXAttributeProto]? = nil, calls: [String] = [],
    prefix: String = "", path: String? = nil
  ) {
    self.versions = versions
    self.attributes = attributes
    self.calls = calls
    self.prefix = prefix
    self.path = path
  }
}
