// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusProto
import ApusTensor

/// One ONNX node while it is imported: what a row of the operator table may read, and how it adds
/// nodes to the graph.
package final class NodeImport {
  /// The operands; nil for an omitted one.
  package let inputs: [ValueID?]
  /// The attributes.
  package let attributes: NodeAttributes
  /// The version of the operator set that the model imports.
  package let version: Int
  /// The number of results the node asks for.
  package let outputCount: Int
  private let importer: GraphImporter
  private let scope: ImportScope
  private let outputNames: [String]
  /// The name under which the node is known.
  package let label: String
  private let location: GraphLocation
  private var emitted = 0

  init(
    _ importer: GraphImporter, _ scope: ImportScope, _ proto: ONNXNodeProto, inputs: [ValueID?],
    attributes: NodeAttributes, version: Int, label: String, location: GraphLocation
  ) {
    self.importer = importer
    self.scope = scope
    self.inputs = inputs
    self.attributes = attributes
    self.version = version
    self.label = label
    self.location = location
    outputCount = (proto.output.lastIndex { !$0.isEmpty } ?? -1) + 1
    outputNames = proto.output.map { $0.isEmpty ? "" : scope.prefix + $0 }
  }

  // MARK: Operands

  /// An operand that must be given.
  package func operand(_ index: Int) throws(ApusError) -> ValueID {
    guard index < inputs.count, let value = inputs[index] else {
      throw ApusError(.invalidGraph, "operand \(index) is missing")
    }
    return value
  }

  /// An operand that may be omitted.
  package func optional(_ index: Int) -> ValueID? { index < inputs.count ? inputs[index] : nil }

  /// The type of a value.
  package func type(of value: ValueID) -> ValueType { importer.graph[value].type }

  /// The tensor type of operand `index`.
  package func tensorType(_ index: Int) throws(ApusError) -> TensorType {
    let type = importer.graph[try operand(index)].type
    guard case .tensor(let tensor) = type else {
      throw ApusError(.typeMismatch, "operand \(index) is \(type), expected a tensor")
    }
    return tensor
  }

  /// The rank of operand `index`, which this operator needs to know now.
  package func rank(_ index: Int) throws(ApusError) -> Int {
    guard let rank = try tensorType(index).rank else {
      throw ApusError(
        .notYetSupported, "the rank of operand \(index) is not known before the model runs",
        hint: "give the model's inputs a shape, for example with onnx.shape_inference.infer_shapes")
    }
    return rank
  }

  /// The rank of a value on the way to the results, which this operator needs to know now.
  package func rank(of value: ValueID) throws(ApusError) -> Int {
    guard case .tensor(let type) = type(of: value), let rank = type.rank else {
      throw ApusError(.notYetSupported, "an operand's rank is not known before the model runs")
    }
    return rank
  }

  /// The elements of a value that is a constant.
  package func constant(_ value: ValueID?) -> Tensor? {
    value.flatMap { importer.graph[$0].constant }
  }

  /// The integers of a value where they are known now.
  package func ints(_ value: ValueID?) -> [Int]? {
    guard let value else { return nil }
    return importer.graph.inferenceInputs([value], outputCount: 1, scope: label).ints(0)
  }

  // MARK: Nodes

  /// Adds an operator with one result on the way to the node's results.
  package func emit(_ op: any Operator, _ inputs: [ValueID?]) throws(ApusError) -> ValueID {
    try emit(op, inputs, outputCount: 1)[0]
  }

  /// Adds an operator on the way to the node's results.
  package func emit(_ op: any Operator, _ inputs: [ValueID?], outputCount: Int) throws(ApusError)
    -> [ValueID]
  {
    emitted += 1
    let name = "\(label)/\(op.name)_\(emitted)"
    return try importer.graph.add(
      op, inputs, outputCount: max(1, outputCount), name: name, location: location,
      sources: [label])
  }

  /// Adds the operator that computes the node's results under the node's own names.
  package func result(_ op: any Operator, _ inputs: [ValueID?], outputCount: Int? = nil)
    throws(ApusError) -> [ValueID]
  {
    // Operands left out at the end are as good as not there.
    var inputs = inputs
    while let last = inputs.last, last == nil { inputs.removeLast() }
    return try importer.graph.add(
      op, inputs, outputCount: max(1, outputCount ?? self.outputCount), outputNames: outputNames,
      name: label, location: location, sources: [label])
  }

  /// Adds a constant.
  package func add(_ tensor: Tensor, isResult: Bool = false) -> ValueID {
    let name = isResult ? outputNames.first ?? label : "\(label)/constant"
    return importer.graph.addConstant(name, tensor)
  }

  /// Adds a vector of `int64`.
  package func vector(_ values: [Int]) throws(ApusError) -> ValueID { add(try .vector(values)) }

  /// Adds a scalar.
  package func scalar(_ value: Double, _ type: DataType) throws(ApusError) -> ValueID {
    add(try .scalar(value, type))
  }

  // MARK: Subgraphs

  /// The values that these graph attributes take from outside, in the order in which they become
  /// extra operands. Constants are not among them: each body gets its own copy.
  package func captures(_ names: [String]) throws(ApusError) -> BodyCaptures {
    var captures: [GraphImporter.Capture] = []
    var seen: Set<String> = []
    for name in names {
      for free in FreeNames.of(try attributes.graph(name)) where seen.insert(free).inserted {
        guard let value = try importer.lookup(free, scope) else {
          throw ApusError(
            .invalidGraph, "the graph '\(name)' uses '\(free)', which nothing around it provides")
        }
        captures.append(GraphImporter.Capture(name: free, value: value))
      }
    }
    let operands = captures.map(\.value).filter { importer.graph[$0].constant == nil }
    return BodyCaptures(captures: captures, operands: operands)
  }

  /// Imports a graph attribute as a body; see `GraphImporter.importBody`.
  package func body(_ name: String, inputTypes: [ValueType?], _ captures: BodyCaptures)
    throws(ApusError) -> Graph
  {
    try importer.importBody(
      try attributes.graph(name), name: "\(label).\(name)", inputTypes: inputTypes,
      captures: captures.captures, outer: scope)
  }

  /// The declared types of a graph attribute's inputs; nil where the file says nothing.
  package func bodyInputTypes(_ name: String) throws(ApusError) -> [ValueType?] {
    try attributes.graph(name).input.map { try? TypeDecoder.type($0.type, name: $0.name) }
  }
}

/// What bodies take from the graph around them.
package struct BodyCaptures {
  let captures: [GraphImporter.Capture]
  /// The extra operands of the control-flow node.
  package let operands: [ValueID]
}
