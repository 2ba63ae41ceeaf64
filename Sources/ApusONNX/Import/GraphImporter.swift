// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusProto
import ApusTensor

/// Builds one graph: the model's own, or the body of a control-flow operator.
final class GraphImporter {
  let session: ImportSession
  /// The graph so far.
  var graph: Graph

  init(_ session: ImportSession, name: String) {
    self.session = session
    graph = Graph(name: name)
  }

  // MARK: Graphs

  /// Imports the model's main graph.
  static func importModel(_ session: ImportSession) throws(ApusError) -> Graph {
    let proto = session.file.model.graph
    let importer = GraphImporter(session, name: proto.name.isEmpty ? "main" : proto.name)
    let scope = ImportScope(versions: ImportSession.versions(session.file.model.opsetImport))
    try importer.declareTensors(proto, in: scope)
    for input in proto.input where !importer.isTensor(input.name, scope) {
      try importer.declareInput(input, scope)
    }
    try importer.importNodes(proto.node, scope)
    try importer.declareOutputs(proto, scope)
    return importer.graph
  }

  /// A value that a body takes from the graph around it.
  struct Capture {
    var name: String
    var value: ValueID
  }

  /// Imports the body of a control-flow node, its own inputs first, then the captured values.
  ///
  /// Captured constants become constants of the body; they need no input.
  func importBody(
    _ proto: ONNXGraphProto, name: String, inputTypes: [ValueType?], captures: [Capture],
    outer: ImportScope
  ) throws(ApusError) -> Graph {
    guard proto.input.count == inputTypes.count else {
      throw ApusError(
        .invalidGraph,
        "the graph '\(name)' has \(proto.input.count) inputs where \(inputTypes.count) are given")
    }
    let inner = GraphImporter(session, name: name)
    inner.graph.isBody = true
    let path = outer.path.map { "\($0)/\(name)" } ?? name
    let scope = ImportScope(
      versions: outer.versions, attributes: outer.attributes, calls: outer.calls, prefix: "",
      path: path)
    try inner.declareTensors(proto, in: scope)
    for (index, input) in proto.input.enumerated() {
      try inner.declareInput(input, scope, known: inputTypes[index])
    }
    for capture in captures {
      let value = graph[capture.value]
      let id: ValueID
      if let constant = value.constant {
        id = inner.graph.addConstant(capture.name, constant)
      } else {
        id = inner.graph.addInput(capture.name, value.type)
        inner.graph[id].symbolic = value.symbolic
      }
      if scope.values[capture.name] == nil { scope.values[capture.name] = id }
    }
    try inner.importNodes(proto.node, scope)
    try inner.declareOutputs(proto, scope)
    return inner.graph
  }

  private func place(_ scope: ImportScope) -> GraphLocation {
    GraphLocation(file: session.file.path, scope: scope.path)
  }

  private func isTensor(_ name: String, _ scope: ImportScope) -> Bool {
    scope.tensors[name] != nil || scope.sparseTensors[name] != nil
  }

  private func declareTensors(_ proto: ONNXGraphProto, in scope: ImportScope) throws(ApusError) {
    for tensor in proto.initializer {
      guard !tensor.name.isEmpty else { continue }
      // Some exporters write shared weights once for every user. Of different ones under one name
      // none is more right than the other.
      if let other = scope.tensors.updateValue(tensor, forKey: tensor.name), other != tensor {
        throw twice(tensor.name, scope)
      }
    }
    for tensor in proto.sparseInitializer {
      let name = tensor.values.name
      guard !isTensor(name, scope) else { throw twice(name, scope) }
      scope.sparseTensors[name] = tensor
    }
  }

  private func twice(_ name: String, _ scope: ImportScope) -> ApusError {
    ApusError(
      .invalidGraph, "the name '\(name)' is given to two inputs or initializers",
      hint: "rename one of them; run onnx.checker.check_model", location: place(scope))
  }

  private func declareInput(
    _ proto: ONNXValueInfoProto, _ scope: ImportScope, known: ValueType? = nil
  ) throws(ApusError) {
    guard scope.values[proto.name] == nil, !proto.name.isEmpty else {
      throw twice(proto.name, scope)
    }
    let type: ValueType
    if let known {
      type = known
    } else {
      do {
        type = try TypeDecoder.type(proto.type, name: proto.name)
      } catch {
        throw error.at(place(scope))
      }
    }
    scope.values[proto.name] = graph.addInput(proto.name, type)
  }

  private func declareOutputs(_ proto: ONNXGraphProto, _ scope: ImportScope) throws(ApusError) {
    for output in proto.output {
      guard let value = try lookup(output.name, scope) else {
        throw ApusError(
          .invalidGraph, "the graph's output '\(output.name)' is never computed",
          hint: "remove the output, or add the node that computes it", location: place(scope))
      }
      graph.addOutput(value, name: output.name)
    }
    if scope.path == nil, proto.output.isEmpty {
      throw ApusError(
        .invalidGraph, "the graph has no outputs",
        hint: "name the results in the model's graph.output", location: place(scope))
    }
  }

  /// The value with a name: already made, or a constant of the file, decoded now.
  func lookup(_ name: String, _ scope: ImportScope) throws(ApusError) -> ValueID? {
    if let known = scope.values[name] { return known }
    let tensor: Tensor
    do {
      if let proto = scope.tensors[name] {
        tensor = try session.decoder.tensor(proto)
      } else if let proto = scope.sparseTensors[name] {
        tensor = try session.decoder.dense(proto)
      } else {
        return nil
      }
    } catch {
      throw error.at(place(scope))
    }
    let id = graph.addConstant(scope.prefix + name, tensor)
    scope.values[name] = id
    scope.tensors[name] = nil
    return id
  }

  // MARK: Nodes

  func importNodes(_ nodes: [ONNXNodeProto], _ scope: ImportScope) throws(ApusError) {
    let order: [Int]
    do {
      order = try NodeOrder.of(nodes)
    } catch {
      throw error.at(place(scope))
    }
    for index in order {
      try importNode(nodes[index], label: NodeOrder.label(nodes[index], index), scope)
    }
  }

  private func importNode(_ proto: ONNXNodeProto, label: String, _ scope: ImportScope)
    throws(ApusError)
  {
    let domain = proto.domain == "ai.onnx" ? "" : proto.domain
    let version = scope.versions[domain]
    var location = place(scope)
    location.node = label
    location.operatorName = OperatorLabel.of(proto, version)
    do throws(ApusError) {
      var inputs: [ValueID?] = []
      inputs.reserveCapacity(proto.input.count)
      for (index, name) in proto.input.enumerated() {
        if name.isEmpty || scope.omitted.contains(name) {
          inputs.append(nil)
          continue
        }
        guard let value = try lookup(name, scope) else {
          throw ApusError(
            .invalidGraph, "input \(index) is '\(name)', which nothing in the graph provides",
            hint: "the model is incomplete; run onnx.checker.check_model on it")
        }
        inputs.append(value)
      }
      let attributes = try bound(proto.attribute, scope)
      let results: [ValueID]
      if let function = session.function(for: proto) {
        results = try inline(
          function, proto, inputs, attributes: attributes, label: label, scope)
      } else {
        guard let version, let row = session.table.row(domain, proto.opType, version: version)
        else {
          throw ApusError(.unsupportedOperator, "the operator is not supported")
        }
        let node = NodeImport(
          self, scope, proto, inputs: inputs,
          attributes: try NodeAttributes(attributes, decoder: session.decoder), version: version,
          label: scope.prefix + label, location: location)
        results = try row.run(node)
        let unread = node.attributes.unreadNames
        if !unread.isEmpty {
          Log.debug(1, "\(location): attributes never used: \(unread.joined(separator: ", "))")
        }
      }
      try bind(proto.output, to: results, scope)
    } catch {
      var failure = error.at(location)
      if failure.hint == nil {
        failure.hint = "check the model with onnx.checker.check_model(path, full_check=True)"
      }
      throw failure
    }
  }

  private func bind(_ names: [String], to results: [ValueID], _ scope: ImportScope)
    throws(ApusError)
  {
    for (index, name) in names.enumerated() where !name.isEmpty {
      guard index < results.count else {
        throw ApusError(
          .invalidGraph, "the node has \(names.count) outputs, the operator has \(results.count)")
      }
      guard scope.values[name] == nil, !isTensor(name, scope) else {
        throw ApusError(.invalidGraph, "'\(name)' is already an input or another node's result")
      }
      scope.values[name] = results[index]
    }
  }

  // MARK: Functions

  /// The attributes with references to the function's own attributes replaced.
  private func bound(_ attributes: [ONNXAttributeProto], _ scope: ImportScope) throws(ApusError)
    -> [ONNXAttributeProto]
  {
    guard attributes.contains(where: { !$0.refAttrName.isEmpty }) else { return attributes }
    guard let bindings = scope.attributes else {
      throw ApusError(
        .invalidAttribute, "an attribute refers to a function's, outside any function")
    }
    return attributes.compactMap { attribute in
      guard !attribute.refAttrName.isEmpty else { return attribute }
      // One that the call leaves open is left open here too.
      guard var value = bindings[attribute.refAttrName] else { return nil }
      value.name = attribute.name
      return value
    }
  }

  private func inline(
    _ function: ONNXFunctionProto, _ call: ONNXNodeProto, _ inputs: [ValueID?],
    attributes: [ONNXAttributeProto], label: String, _ scope: ImportScope
  ) throws(ApusError) -> [ValueID] {
    let key = ImportSession.functionKey(function.domain, function.name, function.overload)
    guard !scope.calls.contains(key) else {
      throw ApusError(
        .invalidGraph, "the function '\(key)' calls itself",
        hint: "ONNX functions must not be recursive")
    }
    guard scope.calls.count < 64 else {
      throw ApusError(.resourceLimit, "functions are nested more than 64 deep")
    }
    var bindings: [String: ONNXAttributeProto] = [:]
    for preset in function.attributeProto { bindings[preset.name] = preset }
    for given in attributes { bindings[given.name] = given }
    let path = scope.path.map { "\($0)/\(label)" } ?? label
    let inner = ImportScope(
      versions: ImportSession.versions(function.opsetImport), attributes: bindings,
      calls: scope.calls + [key], prefix: "\(scope.prefix)\(label)/", path: path)
    guard inputs.count <= function.input.count else {
      throw ApusError(
        .invalidGraph,
        "the call has \(inputs.count) inputs, the function '\(key)' has \(function.input.count)")
    }
    for (name, value) in zip(function.input, inputs) { inner.values[name] = value }
    for (index, name) in function.input.enumerated() {
      if index >= inputs.count || inputs[index] == nil { inner.omitted.insert(name) }
    }
    try importNodes(function.node, inner)
    var results: [ValueID] = []
    for name in function.output {
      guard let value = try lookup(name, inner) else {
        throw ApusError(.invalidGraph, "the function's output '\(name)' is never computed")
      }
      results.append(value)
    }
    return results
  }
}
