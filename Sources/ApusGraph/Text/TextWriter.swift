// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Where the bytes of large constants go while a graph is written.
public protocol ConstantSink {
  /// Stores a constant and returns the number it can be found under.
  mutating func store(_ tensor: Tensor) -> Int
}

/// A sink that keeps constants in a list; equal storage is kept once.
public struct ConstantTable: ConstantSink, Sendable {
  /// The constants by number.
  public private(set) var tensors: [Tensor] = []
  private var known: [Key: Int] = [:]

  private struct Key: Hashable {
    let storage: ObjectIdentifier
    let offset: Int
    let type: TensorType
  }

  /// Creates an empty table.
  public init() {}

  public mutating func store(_ tensor: Tensor) -> Int {
    let key = Key(
      storage: ObjectIdentifier(tensor.storage), offset: tensor.byteOffset, type: tensor.type)
    if let index = known[key] { return index }
    tensors.append(tensor)
    known[key] = tensors.count - 1
    return tensors.count - 1
  }
}

/// Writes a graph in the text format: what dumps show, tests compare and the engine file stores.
///
/// ```
/// graph "main" {
///   input %x: f32[N, 3]
///   const %w: f32[3, 4] = @0
///   %y: f32[N, 4] = MatMul(%x, %w) {} name "fc" from ["fc"]
///   output "y" %y
/// }
/// ```
/// Constants of up to sixteen elements stand in the text; larger ones are numbers into a table.
public struct TextWriter<Sink: ConstantSink> {
  /// The constants written so far.
  public var sink: Sink
  private var text = ""

  /// A writer that stores large constants in `sink`.
  public init(sink: Sink) { self.sink = sink }

  /// The text of a graph.
  public mutating func write(_ graph: Graph) throws(ApusError) -> String {
    text = ""
    try append(graph, indent: "")
    return text
  }

  private mutating func append(_ graph: Graph, indent: String) throws(ApusError) {
    let inner = indent + "  "
    text += "graph \(GraphText.quoted(graph.name)) {\n"
    for input in graph.inputs {
      text += "\(inner)input \(reference(graph, input)): \(GraphText.type(graph[input].type))\n"
    }
    let order = try graph.topologicalOrder()
    for constant in usedConstants(graph, order) { appendConstant(graph, constant, inner) }
    for id in order {
      try appendNode(graph, graph[id], inner)
    }
    for (name, output) in zip(graph.outputNames, graph.outputs) {
      text += "\(inner)output \(GraphText.quoted(name)) \(reference(graph, output))\n"
    }
    text += "\(indent)}"
    if indent.isEmpty { text += "\n" }
  }

  private func usedConstants(_ graph: Graph, _ order: [NodeID]) -> [ValueID] {
    var seen: Set<ValueID> = []
    let used = order.flatMap { graph[$0].inputs.compactMap { $0 } } + graph.outputs
    return used.filter { graph[$0].constant != nil && seen.insert($0).inserted }
  }

  private func reference(_ graph: Graph, _ value: ValueID) -> String {
    GraphText.valueName(graph[value].name)
  }

  private mutating func appendConstant(_ graph: Graph, _ id: ValueID, _ indent: String) {
    let value = graph[id]
    guard let tensor = value.constant else { return }
    text += "\(indent)const \(reference(graph, id)): \(GraphText.type(value.type))"
    if let packing = value.packing { text += " as \(packing)" }
    text += " = \(literal(tensor))\n"
  }

  private mutating func literal(_ tensor: Tensor) -> String {
    guard tensor.count <= 16, !tensor.dataType.isComplex else {
      return "@\(sink.store(tensor))"
    }
    if tensor.dataType == .string {
      return "[\(tensor.strings.map(GraphText.quoted).joined(separator: ", "))]"
    }
    if tensor.dataType.isFloat {
      return "[\(tensor.doubles().map { "\($0)" }.joined(separator: ", "))]"
    }
    return "[\(tensor.integers().map { "\($0)" }.joined(separator: ", "))]"
  }

  private mutating func appendNode(_ graph: Graph, _ node: Node, _ indent: String) throws(ApusError)
  {
    let results = node.outputs.map { "\(reference(graph, $0)): \(GraphText.type(graph[$0].type))" }
    let operands = node.inputs.map { $0.map { reference(graph, $0) } ?? "_" }
    text += "\(indent)\(results.joined(separator: ", ")) = \(node.op.name)"
    text += "(\(operands.joined(separator: ", "))) "
    try appendAttributes(node.op.attributes, indent)
    text += " name \(GraphText.quoted(node.name))"
    if node.sources != [node.name] {
      text += " from [\(node.sources.map(GraphText.quoted).joined(separator: ", "))]"
    }
    text += "\n"
  }

  private mutating func appendAttributes(_ attributes: Attributes, _ indent: String)
    throws(ApusError)
  {
    text += "{"
    for (index, entry) in attributes.entries.enumerated() {
      text += index == 0 ? "" : ", "
      text += "\(entry.name)="
      try appendValue(entry.value, indent)
    }
    text += "}"
  }

  private mutating func appendValue(_ value: AttributeValue, _ indent: String) throws(ApusError) {
    switch value {
    case .int(let value): text += "\(value)"
    case .float(let value): text += "f:\(value)"
    case .bool(let value): text += value ? "true" : "false"
    case .string(let value): text += GraphText.quoted(value)
    case .ints(let values): text += "[\(values.map { "\($0)" }.joined(separator: ", "))]"
    case .floats(let values): text += "f:[\(values.map { "\($0)" }.joined(separator: ", "))]"
    case .strings(let values):
      text += "s:[\(values.map(GraphText.quoted).joined(separator: ", "))]"
    case .type(let type): text += "type:\(type)"
    case .valueType(let type): text += "vtype:\(GraphText.type(type))"
    case .expression(let expr): text += "expr:\(GraphText.quoted(expr.description))"
    case .tensor(let tensor):
      text += "tensor:\(GraphText.type(.tensor(tensor.type))) = \(literal(tensor))"
    case .op(let op):
      text += "op:\(op.name)"
      try appendAttributes(op.attributes, indent)
    case .graph(let graph):
      try append(graph, indent: indent + "    ")
    }
  }
}

extension Graph {
  /// The text form, large constants left out (`@n`).
  public func text() throws(ApusError) -> String {
    var writer = TextWriter(sink: ConstantTable())
    return try writer.write(self)
  }
}

/// The lexical rules that reader and writer share.
package enum GraphText {
  /// A string in double quotes with `\` escapes for quote, backslash and control characters.
  package static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      default:
        if scalar.value < 32 {
          result += "\\u{\(String(scalar.value, radix: 16))}"
        } else {
          result.unicodeScalars.append(scalar)
        }
      }
    }
    return result + "\""
  }

  /// Whether the byte may stand in a bare word.
  package static func isWord(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"):
      true
    case UInt8(ascii: "_"), UInt8(ascii: "."), UInt8(ascii: "/"), UInt8(ascii: ":"),
      UInt8(ascii: "-"), UInt8(ascii: "+"):
      true
    default: false
    }
  }

  /// A value's name as it is referred to.
  package static func valueName(_ name: String) -> String {
    !name.isEmpty && name.utf8.allSatisfy(isWord) ? "%\(name)" : "%\(quoted(name))"
  }

  /// A type; symbolic dimensions are quoted unless they are plain words.
  package static func type(_ type: ValueType) -> String {
    switch type {
    case .tensor(let tensor):
      guard let dims = tensor.dims else { return "\(tensor.dataType)[*]" }
      return "\(tensor.dataType)[\(dims.map(dim).joined(separator: ", "))]"
    case .sequence(let element): return "seq<\(self.type(element))>"
    case .optional(let element): return "opt<\(self.type(element))>"
    }
  }

  private static func dim(_ dim: Dim) -> String {
    if let value = dim.value { return "\(value)" }
    return dim.symbolic
  }
}
