// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Reads a graph from the text format. The text may come from an untrusted file: every mistake is an
/// error with its line, nothing traps.
public struct TextReader {
  private var lexer: TextLexer
  private let registry: OperatorRegistry
  private let constant: (Int, TensorType, PackedLayout?) throws(ApusError) -> Tensor

  /// A reader.
  ///
  /// - Parameters:
  ///   - text: The text.
  ///   - registry: The operators the text may name.
  ///   - constant: Finds the constant with a number, given its declared type and packing.
  public init(
    _ text: String, registry: OperatorRegistry,
    constant: @escaping (Int, TensorType, PackedLayout?) throws(ApusError) -> Tensor
  ) {
    lexer = TextLexer(text)
    self.registry = registry
    self.constant = constant
  }

  /// Reads with constants from a table, as `TextWriter` with a `ConstantTable` leaves them.
  public init(_ text: String, registry: OperatorRegistry, constants: [Tensor] = []) {
    self.init(text, registry: registry) {
      (index: Int, type: TensorType, packing: PackedLayout?) throws(ApusError) -> Tensor in
      guard constants.indices.contains(index) else {
        throw ApusError(.malformedFile, "there is no constant number \(index)")
      }
      return constants[index]
    }
  }

  /// The graph.
  ///
  /// - Throws: `malformed-file` with the line, or `unsupported-operator`.
  public mutating func read() throws(ApusError) -> Graph {
    let graph = try readGraph(depth: 0)
    guard lexer.atEnd else { throw lexer.error("unexpected text after the graph") }
    try GraphVerifier.verify(graph)
    return graph
  }

  private mutating func readGraph(depth: Int) throws(ApusError) -> Graph {
    guard depth < 64 else { throw lexer.error("graphs are nested too deeply") }
    try lexer.expect(word: "graph")
    var graph = Graph(name: try lexer.string())
    graph.isBody = depth > 0
    try lexer.expect("{")
    while !lexer.take("}") {
      if lexer.peek("%") {
        try readNode(&graph, depth)
        continue
      }
      switch try lexer.word() {
      case "input":
        let name = try newName(graph)
        try lexer.expect(":")
        graph.addInput(name, try readType(depth: 0))
      case "const": try readConstant(&graph)
      case "output":
        let name = try lexer.string()
        graph.addOutput(try existing(graph), name: name)
      case let other: throw lexer.error("unexpected '\(other)'")
      }
    }
    return graph
  }

  private mutating func valueName() throws(ApusError) -> String {
    try lexer.expect("%")
    return lexer.peek("\"") ? try lexer.string() : try lexer.word(stoppingAtColon: true)
  }

  private mutating func newName(_ graph: Graph) throws(ApusError) -> String {
    let name = try valueName()
    guard graph.value(named: name) == nil else {
      throw lexer.error("the value '\(name)' is defined twice")
    }
    return name
  }

  private mutating func existing(_ graph: Graph) throws(ApusError) -> ValueID {
    let name = try valueName()
    guard let id = graph.value(named: name) else {
      throw lexer.error("the value '\(name)' is used before it is defined")
    }
    return id
  }

  private mutating func readConstant(_ graph: inout Graph) throws(ApusError) {
    let name = try newName(graph)
    try lexer.expect(":")
    guard case .tensor(let type) = try readType(depth: 0) else {
      throw lexer.error("the constant '\(name)' is not a tensor")
    }
    let packing = lexer.take(word: "as") ? try readPacking() : nil
    try lexer.expect("=")
    let tensor = try readLiteral(type, packing)
    let id = graph.addConstant(name, tensor, packing: packing)
    graph[id].type = .tensor(type)
  }

  private mutating func readPacking() throws(ApusError) -> PackedLayout {
    if lexer.take(word: "winograd") {
      let sizes = try readInts()
      guard 4...6 ~= sizes.count, sizes.allSatisfy({ $0 > 0 && $0 < 1 << 31 }),
        WinogradWeights.resultSizes.contains(sizes[0]), sizes.count < 5 || sizes[4] <= 64,
        sizes.count < 6 || sizes[5] <= ScaledWeights.longestRun
      else { throw lexer.error("bad sizes of transformed weights \(sizes)") }
      return PackedLayout(
        winograd: sizes[0], rows: sizes[1], columns: sizes[2], width: sizes[3],
        interleave: sizes.count > 4 ? sizes[4] : 1, exactRun: sizes.count > 5 ? sizes[5] : 0)
    }
    try lexer.expect(word: "panels")
    let sizes = try readInts()
    guard sizes.count == 4 || sizes.count == 6, sizes.allSatisfy({ $0 > 0 && $0 < 1 << 31 }) else {
      throw lexer.error("bad panel sizes \(sizes)")
    }
    let (interleave, segment) = sizes.count == 6 ? (sizes[4], sizes[5]) : (1, sizes[1])
    guard interleave <= 64, sizes[1] % segment == 0 else {
      throw lexer.error("bad panel sizes \(sizes)")
    }
    return PackedLayout(
      batch: sizes[0], rows: sizes[1], columns: sizes[2], width: sizes[3], interleave: interleave,
      segment: segment)
  }

  private mutating func readLiteral(_ type: TensorType, _ packing: PackedLayout?) throws(ApusError)
    -> Tensor
  {
    if lexer.take("@") {
      return try constant(try lexer.integer(), type, packing)
    }
    guard let shape = packing.map({ [$0.elementCount] }) ?? type.shape else {
      throw lexer.error("a constant's shape must be known")
    }
    if type.dataType == .string {
      return try Tensor(strings: try readStrings(), shape: shape)
    }
    if type.dataType.isFloat {
      let values = try readNumbers()
      guard values.count == (try Tensor.checkedCount(shape)) else {
        throw lexer.error("\(values.count) elements for the shape \(shape)")
      }
      return try Tensor(values, type.dataType, shape: shape)
    }
    let values = try readInts()
    guard values.count == (try Tensor.checkedCount(shape)) else {
      throw lexer.error("\(values.count) elements for the shape \(shape)")
    }
    return try Tensor(values.map(Int64.init), type.dataType, shape: shape)
  }

  private mutating func readNode(_ graph: inout Graph, _ depth: Int) throws(ApusError) {
    var names: [String] = []
    var types: [ValueType] = []
    repeat {
      names.append(try newName(graph))
      try lexer.expect(":")
      types.append(try readType(depth: 0))
    } while lexer.take(",")
    guard Set(names).count == names.count else { throw lexer.error("a result is named twice") }
    try lexer.expect("=")
    let operatorName = try lexer.word()
    try lexer.expect("(")
    var inputs: [ValueID?] = []
    while !lexer.take(")") {
      if !inputs.isEmpty { try lexer.expect(",") }
      inputs.append(lexer.take(word: "_") ? nil : try existing(graph))
    }
    let op = try readOperator(operatorName, depth)
    try lexer.expect(word: "name")
    let name = try lexer.string()
    let sources = lexer.take(word: "from") ? try readStrings() : [name]
    graph.addNode(
      op, inputs, types: types, outputNames: names, name: name,
      location: GraphLocation(node: name, operatorName: operatorName), sources: sources)
  }

  private mutating func readOperator(_ name: String, _ depth: Int) throws(ApusError)
    -> any Operator
  {
    var attributes = Attributes()
    try lexer.expect("{")
    while !lexer.take("}") {
      if !attributes.entries.isEmpty { try lexer.expect(",") }
      let key = try lexer.word()
      try lexer.expect("=")
      attributes[key] = try readValue(depth)
    }
    do {
      return try registry.make(name, attributes)
    } catch {
      throw error.at(GraphLocation(scope: "line \(lexer.line)"))
    }
  }

  private mutating func readValue(_ depth: Int) throws(ApusError) -> AttributeValue {
    if lexer.peek("\"") { return .string(try lexer.string()) }
    if lexer.peek("[") { return .ints(try readInts()) }
    if lexer.peek(word: "graph") { return .graph(try readGraph(depth: depth + 1)) }
    if lexer.take(word: "true") { return .bool(true) }
    if lexer.take(word: "false") { return .bool(false) }
    if lexer.take(prefix: "f:") {
      return lexer.peek("[") ? .floats(try readNumbers()) : .float(try lexer.number())
    }
    if lexer.take(prefix: "s:") { return .strings(try readStrings()) }
    if lexer.take(prefix: "type:") {
      let name = try lexer.word()
      guard let type = DataType(name: name) else { throw lexer.error("unknown type '\(name)'") }
      return .type(type)
    }
    if lexer.take(prefix: "vtype:") { return .valueType(try readType(depth: 0)) }
    if lexer.take(prefix: "expr:") {
      return .expression(try ScalarExpr(parsing: try lexer.string()))
    }
    if lexer.take(prefix: "tensor:") {
      guard case .tensor(let type) = try readType(depth: 0) else {
        throw lexer.error("a tensor attribute needs a tensor type")
      }
      try lexer.expect("=")
      return .tensor(try readLiteral(type, nil))
    }
    if lexer.take(prefix: "op:") {
      guard depth < 64 else { throw lexer.error("operators are nested too deeply") }
      return .op(try readOperator(try lexer.word(), depth + 1))
    }
    return .int(try lexer.integer())
  }

  private mutating func readType(depth: Int) throws(ApusError) -> ValueType {
    guard depth < 16 else { throw lexer.error("types are nested too deeply") }
    let name = try lexer.word()
    if name == "seq" || name == "opt" {
      try lexer.expect("<")
      let element = try readType(depth: depth + 1)
      try lexer.expect(">")
      return name == "seq" ? .sequence(element) : .optional(element)
    }
    guard let type = DataType(name: name) else { throw lexer.error("unknown type '\(name)'") }
    try lexer.expect("[")
    if lexer.take("*") {
      try lexer.expect("]")
      return .tensor(TensorType(type, nil))
    }
    var dims: [Dim] = []
    while !lexer.take("]") {
      if !dims.isEmpty { try lexer.expect(",") }
      dims.append(try readDim())
    }
    return .tensor(TensorType(type, dims))
  }

  private mutating func readDim() throws(ApusError) -> Dim {
    guard lexer.take("{") else { return Dim(try lexer.integer()) }
    var sum = Dim(0)
    repeat {
      var product = Dim(try lexer.integer())
      while lexer.take("*") { product = product * .symbol(try lexer.string()) }
      sum = sum + product
    } while lexer.take("+")
    try lexer.expect("}")
    return sum
  }

  private mutating func readInts() throws(ApusError) -> [Int] {
    var values: [Int] = []
    try lexer.expect("[")
    while !lexer.take("]") {
      if !values.isEmpty { try lexer.expect(",") }
      values.append(try lexer.integer())
    }
    return values
  }

  private mutating func readNumbers() throws(ApusError) -> [Double] {
    var values: [Double] = []
    try lexer.expect("[")
    while !lexer.take("]") {
      if !values.isEmpty { try lexer.expect(",") }
      values.append(try lexer.number())
    }
    return values
  }

  private mutating func readStrings() throws(ApusError) -> [String] {
    var values: [String] = []
    try lexer.expect("[")
    while !lexer.take("]") {
      if !values.isEmpty { try lexer.expect(",") }
      values.append(try lexer.string())
    }
    return values
  }
}
