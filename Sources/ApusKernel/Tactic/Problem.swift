// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// What a kernel has to compute: an operator on operands of known types. Equal keys mean that one
/// kernel serves both, so the key names problems in the timing cache.
public struct Problem: Sendable {
  /// One operand.
  public struct Operand: Sendable {
    /// The element type.
    public let dataType: DataType
    /// The sizes.
    public let shape: [Int]
    /// The elements, when they are constant.
    public let constant: Tensor?
    /// The order in which the constant is stored, when it has been packed.
    public let packing: PackedLayout?
    /// Elements from the start of a row, which is along the last axis, to the start of the next one; nil
    /// where rows follow each other. What lies between rows belongs to others.
    public let pitch: Int?

    /// Describes an operand.
    public init(
      dataType: DataType, shape: [Int], constant: Tensor?, packing: PackedLayout? = nil,
      pitch: Int? = nil
    ) {
      self.dataType = dataType
      self.shape = shape
      self.constant = constant
      self.packing = packing
      self.pitch = pitch
    }

    /// A power of two that no element exceeds, of a few that are told apart; nil for what is no constant vector of
    /// single precision. Problems of bytes have it in their name, so that kernels may rely on it. However the vector is
    /// packed, it has the same.
    public var largestExponent: Int? {
      guard let constant, dataType == .float32, constant.dataType == .float32,
        shape.filter({ $0 != 1 }).count <= 1, count <= Self.mostBounded
      else { return nil }
      let largest: Float = constant.withElements { (elements: UnsafeBufferPointer<Float>) in
        elements.reduce(0) { $1.isNaN ? .infinity : max($0, $1.magnitude) }
      }
      return Self.exponents.first { Double(largest) <= Double(sign: .plus, exponent: $0, significand: 1) }
    }

    private static let mostBounded = 1 << 14
    /// What scales of products are below, and what biases are.
    private static let exponents = [-4, 20]

    /// The number of elements.
    public var count: Int { shape.reduce(1, &*) }
    /// The number of rows, and of elements of each.
    public var rowCount: Int { shape.dropLast().reduce(1, &*) }
    public var rowWidth: Int { shape.last ?? 1 }
    /// Elements from the start of a row to the start of the next one.
    public var rowStride: Int { pitch ?? rowWidth }
    /// Elements from the first one to behind the last one.
    public var spannedCount: Int { count == 0 ? 0 : (rowCount - 1) &* rowStride &+ rowWidth }

    /// Type and sizes as text.
    var text: String { "\(dataType)\(shape)\(pitch.map { " pitch \($0)" } ?? "")" }
  }

  /// The operator.
  public let op: any Operator
  /// The operands; nil for omitted ones.
  public let inputs: [Operand?]
  /// The results' types.
  public let outputs: [Operand]
  /// The text that names the problem.
  public let key: String

  /// Describes a problem.
  public init(op: any Operator, inputs: [Operand?], outputs: [Operand]) {
    self.op = op
    self.inputs = inputs
    self.outputs = outputs
    key = Self.key(op, inputs, outputs)
  }

  /// The problem of a node all of whose types are known.
  ///
  /// - Parameter pitches: Those of the values that lie with gaps between their rows.
  /// - Throws: `internal` when a size is open or a value is not a tensor.
  public init(_ node: Node, in graph: Graph, pitches: [ValueID: Int] = [:]) throws(ApusError) {
    func operand(_ id: ValueID) throws(ApusError) -> Operand {
      let value = graph[id]
      guard let type = value.type.tensor, let shape = type.shape else {
        throw ApusError(
          .internalError, "the type of '\(value.name)' is open: \(value.type)",
          location: node.location)
      }
      return Operand(
        dataType: type.dataType, shape: shape, constant: value.constant, packing: value.packing,
        pitch: pitches[id])
    }
    var inputs: [Operand?] = []
    for input in node.inputs { inputs.append(try input.map(operand)) }
    var outputs: [Operand] = []
    for output in node.outputs { outputs.append(try operand(output)) }
    self.init(op: node.op, inputs: inputs, outputs: outputs)
  }

  /// The operand types.
  public var inputTypes: [TensorType?] {
    inputs.map { $0.map { TensorType($0.dataType, shape: $0.shape) } }
  }

  /// The result types.
  public var outputTypes: [TensorType] {
    outputs.map { TensorType($0.dataType, shape: $0.shape) }
  }

  /// The arithmetic and memory cost.
  public var cost: Cost { op.cost(inputs: inputTypes, outputs: outputTypes) }

  /// The key with the orders in which constants are stored: what a compiled kernel is for.
  public var storedKey: String {
    "\(key)|\(inputs.map { "\($0?.packing?.description ?? "")" }.joined(separator: ","))"
  }

  private static func key(_ op: any Operator, _ inputs: [Operand?], _ outputs: [Operand]) -> String {
    let hasBytes = inputs.contains { $0?.dataType == .int8 }
    let operands = inputs.map { input in
      guard let input else { return "_" }
      let type = input.text
      guard let constant = input.constant else { return type }
      let isParameter = constant.dataType.isInteger && constant.count <= 16 && input.packing == nil
      if isParameter { return "\(type)=\(constant.integers())" }
      let bound = hasBytes ? input.largestExponent.map { " <= 2^\($0)" } : nil
      return "const \(type)\(bound ?? "")"
    }
    let results = outputs.map(\.text)
    let text =
      "\(OperatorText.text(op))(\(operands.joined(separator: ", "))) -> \(results.joined(separator: ", "))"
    return text.replacing("\n", with: " ")
  }
}

/// Operators in one line of text.
public enum OperatorText {
  /// The operator with its attributes, large ones by their checksum.
  public static func text(_ op: any Operator) -> String {
    let attributes = op.attributes.entries.map { "\($0.name)=\(text($0.value))" }
    return attributes.isEmpty ? op.name : "\(op.name){\(attributes.joined(separator: ", "))}"
  }

  private static func text(_ value: AttributeValue) -> String {
    switch value {
    case .int(let value): "\(value)"
    case .float(let value): "\(value)"
    case .bool(let value): "\(value)"
    case .string(let value): value
    case .ints(let values): "\(values)"
    case .floats(let values): "\(values)"
    case .strings(let values): "\(values)"
    case .type(let type): "\(type)"
    case .valueType(let type): "\(type)"
    case .expression(let expr): "\(expr)"
    case .op(let op): text(op)
    case .tensor(let tensor): "tensor \(tensor.type) \(checksum(tensor))"
    case .graph(let graph):
      "graph \((try? graph.text()).map { Checksum.hex(Checksum.of($0)) } ?? graph.name)"
    }
  }

  private static func checksum(_ tensor: Tensor) -> String {
    var sum = Checksum()
    sum.update(tensor.bytes)
    return Checksum.hex(sum.value)
  }
}
