// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// A handle to a value of one graph.
public struct ValueID: Hashable, Sendable, Comparable {
  /// The position in the graph's value table.
  public let index: Int
  package init(_ index: Int) { self.index = index }
  public static func < (a: ValueID, b: ValueID) -> Bool { a.index < b.index }
}

/// A handle to a node of one graph.
public struct NodeID: Hashable, Sendable, Comparable {
  /// The position in the graph's node table.
  public let index: Int
  package init(_ index: Int) { self.index = index }
  public static func < (a: NodeID, b: NodeID) -> Bool { a.index < b.index }
}

/// One application of an operator.
public struct Node: Sendable {
  /// The operator with its attributes.
  public var op: any Operator
  /// The operands; nil for an omitted optional one.
  public internal(set) var inputs: [ValueID?]
  /// The results.
  public internal(set) var outputs: [ValueID]
  /// The name in the model, or one made up for it.
  public var name: String
  /// Where in the model it came from.
  public var location: GraphLocation
  /// The names of all model nodes this one stands for.
  public var sources: [String]
}

/// A value: a graph input, a constant, or a node's result.
public struct Value: Sendable {
  /// The name, unique in the graph.
  public internal(set) var name: String
  /// The type.
  public var type: ValueType
  /// The node that computes it; nil for inputs and constants.
  public internal(set) var producer: NodeID?
  /// The position among the producer's results.
  public internal(set) var outputIndex: Int
  /// The elements, for a constant.
  public internal(set) var constant: Tensor?
  /// The nodes that use it, once per use.
  public internal(set) var consumers: [NodeID]
  /// The elements of a small integer value up to symbols, where shape inference found them.
  public var symbolic: [Dim]?
  /// The storage order of a constant, when it has been packed for a kernel.
  public var packing: PackedLayout?
}

/// A network: nodes in an arena, values between them. A value type: copying is cheap until one copy
/// changes, so snapshots for dumps and comparisons cost nothing.
public struct Graph: Sendable {
  /// The name.
  public var name: String
  /// Whether it is the body of a control-flow operator.
  public var isBody = false
  /// What the caller provides, in order.
  public private(set) var inputs: [ValueID] = []
  /// What the caller receives, in order.
  public private(set) var outputs: [ValueID] = []
  /// The names under which results are returned, in the order of `outputs`.
  public private(set) var outputNames: [String] = []
  private var nodeTable: [Node?] = []
  private var valueTable: [Value] = []
  private var names: [String: ValueID] = [:]
  private var nameCounter = 0

  /// Creates an empty graph.
  public init(name: String) { self.name = name }

  // MARK: Reading

  /// A node. The handle must come from this graph and the node must not have been removed.
  public subscript(id: NodeID) -> Node {
    get { nodeTable[id.index]! }
    set { nodeTable[id.index] = newValue }
  }

  /// A value. The handle must come from this graph.
  public subscript(id: ValueID) -> Value {
    get { valueTable[id.index] }
    set { valueTable[id.index] = newValue }
  }

  /// Whether the node is still in the graph.
  public func contains(_ id: NodeID) -> Bool {
    nodeTable.indices.contains(id.index) && nodeTable[id.index] != nil
  }

  /// The nodes in the order in which they were added.
  public var nodes: [NodeID] { nodeTable.indices.filter { nodeTable[$0] != nil }.map(NodeID.init) }

  /// The number of nodes.
  public var nodeCount: Int { nodeTable.reduce(0) { $1 == nil ? $0 : $0 + 1 } }

  /// All values, dead ones included.
  public var values: [ValueID] { valueTable.indices.map(ValueID.init) }

  /// The value with this name.
  public func value(named name: String) -> ValueID? { names[name] }

  /// The node that computes a value.
  public func producer(of value: ValueID) -> Node? { self[value].producer.map { self[$0] } }

  /// Whether the value is returned to the caller.
  public func isOutput(_ value: ValueID) -> Bool { outputs.contains(value) }

  /// The number of uses, counting once for every time it is returned.
  public func useCount(_ value: ValueID) -> Int {
    self[value].consumers.count + outputs.reduce(0) { $1 == value ? $0 + 1 : $0 }
  }

  /// The nodes ordered so that producers come before consumers; otherwise in insertion order.
  ///
  /// - Throws: `invalid-graph` when nodes depend on each other in a circle.
  public func topologicalOrder() throws(ApusError) -> [NodeID] {
    var state = [UInt8](repeating: 0, count: nodeTable.count)
    var order: [NodeID] = []
    var stack: [(node: Int, next: Int)] = []
    for start in nodeTable.indices where nodeTable[start] != nil && state[start] == 0 {
      stack.append((start, 0))
      state[start] = 1
      while let top = stack.last {
        let node = nodeTable[top.node]!
        if top.next == node.inputs.count {
          state[top.node] = 2
          order.append(NodeID(top.node))
          stack.removeLast()
          continue
        }
        stack[stack.count - 1].next += 1
        guard let input = node.inputs[top.next], let producer = self[input].producer else {
          continue
        }
        if state[producer.index] == 1 {
          throw ApusError(
            .invalidGraph, "the graph has a cycle through node '\(self[producer].name)'",
            location: self[producer].location)
        }
        if state[producer.index] == 0 {
          state[producer.index] = 1
          stack.append((producer.index, 0))
        }
      }
    }
    return order
  }

  // MARK: Building

  /// A name based on `base` that no value has.
  public mutating func uniqueName(_ base: String) -> String {
    if !base.isEmpty, names[base] == nil { return base }
    while true {
      nameCounter += 1
      let candidate = "\(base.isEmpty ? "v" : base).\(nameCounter)"
      if names[candidate] == nil { return candidate }
    }
  }

  private mutating func addValue(
    _ name: String, _ type: ValueType, producer: NodeID?, outputIndex: Int, constant: Tensor?
  ) -> ValueID {
    let id = ValueID(valueTable.count)
    let unique = uniqueName(name)
    valueTable.append(
      Value(
        name: unique, type: type, producer: producer, outputIndex: outputIndex, constant: constant,
        consumers: []))
    names[unique] = id
    return id
  }

  /// Adds a graph input.
  @discardableResult
  public mutating func addInput(_ name: String, _ type: ValueType) -> ValueID {
    let id = addValue(name, type, producer: nil, outputIndex: 0, constant: nil)
    inputs.append(id)
    return id
  }

  /// Adds a constant.
  public mutating func addConstant(_ name: String, _ tensor: Tensor, packing: PackedLayout? = nil)
    -> ValueID
  {
    let id = addValue(
      name, .tensor(tensor.type), producer: nil, outputIndex: 0, constant: tensor)
    valueTable[id.index].packing = packing
    return id
  }

  /// Adds a value that some node added later computes (forward references while reading a file).
  package mutating func addPlaceholder(_ name: String, _ type: ValueType) -> ValueID {
    addValue(name, type, producer: nil, outputIndex: 0, constant: nil)
  }

  /// Adds a node whose result types are known.
  @discardableResult
  public mutating func addNode(
    _ op: any Operator, _ inputs: [ValueID?], types: [ValueType], outputNames: [String] = [],
    name: String = "", location: GraphLocation = GraphLocation(), sources: [String]? = nil
  ) -> NodeID {
    let id = NodeID(nodeTable.count)
    let nodeName = name.isEmpty ? "\(op.name)_\(id.index)" : name
    nodeTable.append(nil)
    let outputs = types.indices.map { index in
      let wanted =
        index < outputNames.count && !outputNames[index].isEmpty ? outputNames[index] : nodeName
      return addValue(wanted, types[index], producer: id, outputIndex: index, constant: nil)
    }
    var place = location
    place.node = place.node ?? nodeName
    nodeTable[id.index] = Node(
      op: op, inputs: inputs, outputs: outputs, name: nodeName, location: place,
      sources: sources ?? [nodeName])
    for input in inputs { if let input { valueTable[input.index].consumers.append(id) } }
    return id
  }

  /// Adds a node, inferring its result types.
  ///
  /// - Throws: whatever the operator's inference throws, with the node's location.
  @discardableResult
  public mutating func add(
    _ op: any Operator, _ inputs: [ValueID?], outputCount: Int = 1, outputNames: [String] = [],
    name: String = "", location: GraphLocation = GraphLocation(), sources: [String]? = nil
  ) throws(ApusError) -> [ValueID] {
    let nodeName = name.isEmpty ? "\(op.name)_\(nodeTable.count)" : name
    let facts = inferenceInputs(
      inputs, outputCount: outputCount, scope: nodeName)
    let types: [ValueType]
    do {
      types = try op.infer(facts)
    } catch where isBody && error.code == .typeMismatch {
      // A branch may contradict the types outside that keep it from being taken: its results are
      // open, and should it run all the same, the operator itself reports the contradiction.
      let first = inputs.first.flatMap { $0 }.flatMap { self[$0].type.tensor?.dataType }
      types = Array(repeating: .tensor(TensorType(first ?? .float32, nil)), count: outputCount)
    } catch {
      throw error.at(location).at(GraphLocation(node: nodeName, operatorName: op.name))
    }
    guard types.count >= outputCount else {
      throw ApusError(
        .invalidGraph, "\(op.name) has \(types.count) results, \(outputCount) are asked for",
        location: location)
    }
    let node = addNode(
      op, inputs, types: Array(types.prefix(outputCount)), outputNames: outputNames,
      name: nodeName, location: location, sources: sources)
    updateSymbolic(node, facts)
    return self[node].outputs
  }

  /// What inference may know about these operands.
  public func inferenceInputs(_ inputs: [ValueID?], outputCount: Int, scope: String)
    -> InferenceInputs
  {
    InferenceInputs(
      types: inputs.map { $0.map { self[$0].type } },
      constants: inputs.map { $0.flatMap { self[$0].packing == nil ? self[$0].constant : nil } },
      symbolic: inputs.map { $0.flatMap { self[$0].symbolic } },
      outputCount: outputCount, scope: scope)
  }

  package mutating func updateSymbolic(_ id: NodeID, _ facts: InferenceInputs) {
    guard let op = self[id].op as? any ShapeValueOperator else { return }
    for (output, dims) in zip(self[id].outputs, op.symbolicResults(facts)) {
      valueTable[output.index].symbolic = dims
    }
  }

  /// Adds a result of the graph, returned under `name` (the value's own name when nil).
  public mutating func addOutput(_ value: ValueID, name: String? = nil) {
    outputs.append(value)
    outputNames.append(name ?? self[value].name)
  }

  /// Removes the results from a position on.
  public mutating func removeOutputs(from index: Int) {
    outputs.removeSubrange(index...)
    outputNames.removeSubrange(index...)
  }

  // MARK: Changing

  /// Makes every use of `old` a use of `new`, graph results included.
  public mutating func replaceUses(of old: ValueID, with new: ValueID) {
    guard old != new else { return }
    let users = self[old].consumers
    for user in Set(users) {
      for index in self[user].inputs.indices where self[user].inputs[index] == old {
        nodeTable[user.index]!.inputs[index] = new
      }
    }
    valueTable[new.index].consumers += users
    valueTable[old.index].consumers = []
    for index in outputs.indices where outputs[index] == old { outputs[index] = new }
  }

  /// Replaces one operand of a node.
  public mutating func setInput(_ node: NodeID, _ index: Int, to value: ValueID?) {
    if let old = self[node].inputs[index] {
      if let use = valueTable[old.index].consumers.firstIndex(of: node) {
        valueTable[old.index].consumers.remove(at: use)
      }
    }
    nodeTable[node.index]!.inputs[index] = value
    if let value { valueTable[value.index].consumers.append(node) }
  }

  /// Replaces a node's operator and operands, keeping its results.
  public mutating func update(_ node: NodeID, op: any Operator, inputs: [ValueID?]) {
    for input in self[node].inputs {
      if let input, let use = valueTable[input.index].consumers.firstIndex(of: node) {
        valueTable[input.index].consumers.remove(at: use)
      }
    }
    nodeTable[node.index]!.op = op
    nodeTable[node.index]!.inputs = inputs
    for input in inputs { if let input { valueTable[input.index].consumers.append(node) } }
  }

  /// Turns a value into a constant; its producer no longer computes it.
  public mutating func makeConstant(_ value: ValueID, _ tensor: Tensor, packing: PackedLayout? = nil)
  {
    valueTable[value.index].constant = tensor
    valueTable[value.index].type = .tensor(tensor.type)
    valueTable[value.index].packing = packing
  }

  /// Removes a node whose results nobody uses.
  public mutating func remove(_ node: NodeID) {
    for input in self[node].inputs {
      if let input, let use = valueTable[input.index].consumers.firstIndex(of: node) {
        valueTable[input.index].consumers.remove(at: use)
      }
    }
    for output in self[node].outputs {
      valueTable[output.index].producer = nil
      names[valueTable[output.index].name] = nil
    }
    nodeTable[node.index] = nil
  }

  /// Renames a value; the name must be free.
  public mutating func rename(_ value: ValueID, to name: String) {
    names[self[value].name] = nil
    let unique = uniqueName(name)
    valueTable[value.index].name = unique
    names[unique] = value
  }

  /// Makes a placeholder the result of a node (used while reading files).
  package mutating func bind(
    _ op: any Operator, _ inputs: [ValueID?], outputs: [ValueID], name: String,
    location: GraphLocation, sources: [String]
  ) -> NodeID {
    let id = NodeID(nodeTable.count)
    nodeTable.append(
      Node(
        op: op, inputs: inputs, outputs: outputs, name: name, location: location, sources: sources))
    for (index, output) in outputs.enumerated() {
      valueTable[output.index].producer = id
      valueTable[output.index].outputIndex = index
    }
    for input in inputs { if let input { valueTable[input.index].consumers.append(id) } }
    return id
  }
}
