// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
import ApusTensor

/// A pointwise node as an expression over its distinct variable operands; constants of one element
/// stand in the expression itself.
struct PointwiseTerm {
  /// The expression.
  var expression: ScalarExpr
  /// The operands, each once.
  var operands: [ValueID]

  /// Limits beyond which a region stops paying: registers and operand pointers of a kernel.
  static let nodeLimit = 64
  static let operandLimit = 8

  /// Whether elements of the type may pass from one joined node to the next: kernels load them as
  /// numbers and round when they store them.
  static func isJoinable(_ type: DataType) -> Bool {
    [.float32, .bfloat16, .uint8, .int8].contains(type)
  }

  /// Reads a node; nil when it is not a pointwise operator (booleans may occur inside).
  init?(_ node: Node, _ graph: Graph) {
    guard let op = node.op as? any PointwiseOperator, node.outputs.count == 1 else { return nil }
    var types: [DataType] = []
    for input in node.inputs {
      guard let input, let type = graph[input].type.tensor?.dataType else { return nil }
      types.append(type)
    }
    let body = op.body(types)
    guard body.inputCount <= types.count else { return nil }
    self.init(body, node.inputs.compactMap { $0 }, graph)
    guard expression.isInKernels, expression.nodeCount <= Self.nodeLimit, operands.count <= Self.operandLimit else {
      return nil
    }
  }

  private init(_ body: ScalarExpr, _ inputs: [ValueID], _ graph: Graph) {
    var operands: [ValueID] = []
    expression = body.substituting { index in
      let value = inputs[index]
      if let constant = graph[value].constant, constant.count == 1, constant.dataType == .float32 {
        return .const(constant.doubles()[0])
      }
      if let known = operands.firstIndex(of: value) { return .input(known) }
      operands.append(value)
      return .input(operands.count - 1)
    }
    self.operands = operands
  }

  /// Puts an operand before the others.
  mutating func lead(with operand: ValueID) {
    let list = [operand] + operands.filter { $0 != operand }
    let old = operands
    expression = expression.substituting { index in
      .input(list.firstIndex(of: old[index]) ?? index)
    }
    operands = list
  }

  /// This term with operand `value` replaced by another term, whose operands come where it was.
  func substituting(_ value: ValueID, by inner: PointwiseTerm) -> PointwiseTerm {
    var result = self
    var list: [ValueID] = []
    for operand in operands.flatMap({ $0 == value ? inner.operands : [$0] })
    where !list.contains(operand) { list.append(operand) }
    func position(_ operand: ValueID) -> ScalarExpr { .input(list.firstIndex(of: operand)!) }
    let replacement = inner.expression.substituting { position(inner.operands[$0]) }
    result.expression = expression.substituting { index in
      operands[index] == value ? replacement : position(operands[index])
    }
    result.operands = list
    return result
  }
}
