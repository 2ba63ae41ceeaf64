// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusONNX
import ApusProto
import ApusTensor

/// Makes small models for tests.
enum Make {
  static func model(
    _ graph: ONNXGraphProto, opset: Int64 = 17, ir: Int64 = 8, functions: [ONNXFunctionProto] = [],
    domains: [String] = []
  ) throws -> [UInt8] {
    var model = ONNXModelProto()
    model.irVersion = ir
    model.graph = graph
    model.functions = functions
    model.opsetImport = [self.opset("", opset)] + domains.map { self.opset($0, 1) }
    return try model.encoded()
  }

  static func opset(_ domain: String, _ version: Int64) -> ONNXOperatorSetIdProto {
    var entry = ONNXOperatorSetIdProto()
    entry.domain = domain
    entry.version = version
    return entry
  }

  static func graph(
    _ nodes: [ONNXNodeProto], inputs: [ONNXValueInfoProto], outputs: [String],
    tensors: [ONNXTensorProto] = [], name: String = "g"
  ) -> ONNXGraphProto {
    var graph = ONNXGraphProto()
    graph.name = name
    graph.node = nodes
    graph.input = inputs
    graph.output = outputs.map {
      var info = ONNXValueInfoProto()
      info.name = $0
      return info
    }
    graph.initializer = tensors
    return graph
  }

  static func node(
    _ op: String, _ inputs: [String], _ outputs: [String], name: String = "", domain: String = "",
    _ attributes: [ONNXAttributeProto] = []
  ) -> ONNXNodeProto {
    var node = ONNXNodeProto()
    node.opType = op
    node.input = inputs
    node.output = outputs
    node.name = name
    node.domain = domain
    node.attribute = attributes
    return node
  }

  static func input(_ name: String, _ dims: [Int64], type: Int32 = 1) -> ONNXValueInfoProto {
    var info = ONNXValueInfoProto()
    info.name = name
    info.type.tensorType.elemType = type
    info.type.tensorType.shape.dim = dims.map {
      var dim = ONNXTensorShapeProto.Dimension()
      if $0 >= 0 { dim.dimValue = $0 } else { dim.dimParam = "N" }
      return dim
    }
    return info
  }

  static func tensor(_ name: String, _ dims: [Int64], _ values: [Float], raw: Bool = false)
    -> ONNXTensorProto
  {
    var tensor = ONNXTensorProto()
    tensor.name = name
    tensor.dims = dims
    tensor.dataType = 1
    if raw {
      tensor.setRawData(values.withUnsafeBytes { Array($0) })
    } else {
      tensor.floatData = values
    }
    return tensor
  }

  static func attribute(_ name: String, _ value: Int64) -> ONNXAttributeProto {
    var attribute = ONNXAttributeProto()
    attribute.name = name
    attribute.type = .int
    attribute.i = value
    return attribute
  }

  static func attribute(_ name: String, _ value: ONNXGraphProto) -> ONNXAttributeProto {
    var attribute = ONNXAttributeProto()
    attribute.name = name
    attribute.type = .graph
    attribute.g = value
    return attribute
  }

  static func attribute(_ name: String, reference: String) -> ONNXAttributeProto {
    var attribute = ONNXAttributeProto()
    attribute.name = name
    attribute.type = .int
    attribute.refAttrName = reference
    return attribute
  }

  static func function(
    _ domain: String, _ name: String, _ inputs: [String], _ outputs: [String],
    _ nodes: [ONNXNodeProto], attributes: [String] = [], domains: [String] = []
  ) -> ONNXFunctionProto {
    var function = ONNXFunctionProto()
    function.domain = domain
    function.name = name
    function.input = inputs
    function.output = outputs
    function.node = nodes
    function.attribute = attributes
    function.opsetImport = [opset("", 17)] + domains.map { opset($0, 1) }
    return function
  }

  /// The rendered error of an import, or `nil` when it succeeds.
  static func failure(_ bytes: [UInt8], folder: String? = nil) -> String? {
    do {
      _ = try ONNXImporter(table: TestTable.table).importModel(
        bytes: bytes, directory: folder)
      return nil
    } catch {
      return error.description
    }
  }
}

/// An operator for tests: all results have the type of the first operand.
struct Mix: ControlFlowOperator {
  static let name = "Mix"
  var kind = 0
  var bodies: [Graph] = []

  init(kind: Int = 0, bodies: [Graph] = []) {
    self.kind = kind
    self.bodies = bodies
  }

  init(reading attributes: inout AttributeReader) throws(ApusError) {
    kind = try attributes.int("kind", 0)
  }

  var attributes: Attributes { ["kind": .int(kind)] }

  func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    return Array(repeating: .tensor(type), count: inputs.outputCount)
  }

  func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] { [] }

  func execute(
    _ inputs: [RuntimeValue?],
    run: (_ body: Int, _ operands: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] { [] }
}

/// The operators of the test models.
enum TestTable {
  static let table: ONNXOperatorTable = {
    var table = ONNXOperatorTable()
    table.op("Mix", since: 7) { (node) throws(ApusError) in
      Mix(kind: try node.attributes.int("kind", 0))
    }
    table.op("Mix", since: 13) { (node) throws(ApusError) in
      Mix(kind: 100 + (try node.attributes.int("kind", 0)))
    }
    table.on("Branch", since: 7) { (node) throws(ApusError) in
      let captures = try node.captures(["then", "else"])
      let bodies = [
        try node.body("then", inputTypes: [], captures),
        try node.body("else", inputTypes: [], captures),
      ]
      return try node.result(Mix(bodies: bodies), node.inputs + captures.operands)
    }
    return table
  }()
}
