// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Computes what depends on constants only, with the reference semantics.
///
/// A result is kept when it is small or not larger than what it was computed from: a big `Expand` of
/// a scalar costs nothing at run time and would only bloat the engine. Integer values whose elements
/// shape inference knows become constants too, so shape arithmetic disappears.
public struct FoldConstants: Pass {
  public let name = "FoldConstants"
  /// Results up to this size are kept even when they are larger than their operands.
  public let byteBudget: Int
  private let exemptOperators: Set<String>

  /// Creates the pass. Results of `exemptOperators` are folded whatever their size.
  public init(byteBudget: Int = 4 << 20, exemptOperators: Set<String> = ["DequantizeLinear"]) {
    self.byteBudget = byteBudget
    self.exemptOperators = exemptOperators
  }

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var folded = 0
    for id in try graph.topologicalOrder() {
      var done = try foldKnownElements(id, &graph, context)
      if !done { done = try foldOperator(id, &graph, context) }
      if done { folded += 1 }
    }
    return folded
  }

  private func foldKnownElements(_ id: NodeID, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError) -> Bool
  {
    let node = graph[id]
    guard node.outputs.count == 1, let dims = graph[node.outputs[0]].symbolic,
      let type = graph[node.outputs[0]].type.tensor, let shape = type.shape,
      type.dataType.isInteger, !node.inputs.isEmpty
    else { return false }
    let values = dims.compactMap(\.value)
    guard values.count == dims.count, shape.reduce(1, &*) == values.count,
      context.claim(name, node.name)
    else { return false }
    replace(
      node.outputs[0], by: try Tensor(values.map(Int64.init), type.dataType, shape: shape), &graph)
    graph.remove(id)
    return true
  }

  private func foldOperator(_ id: NodeID, _ graph: inout Graph, _ context: PassContext)
    throws(ApusError) -> Bool
  {
    let node = graph[id]
    guard !(node.op is any NondeterministicOperator), !(node.op is any ControlFlowOperator) else {
      return false
    }
    var operands: [RuntimeValue?] = []
    var operandBytes = 0
    for input in node.inputs {
      guard let input else {
        operands.append(nil)
        continue
      }
      guard let tensor = graph[input].constant, graph[input].packing == nil else { return false }
      operands.append(.tensor(tensor))
      operandBytes += tensor.byteCount
    }
    guard fits(node, graph, operandBytes) else { return false }
    // Errors at run time (a division by zero in a branch never taken) must not stop the build.
    guard let results = try? node.op.evaluate(operands) else { return false }
    let tensors = results.compactMap(\.tensor)
    guard tensors.count == results.count, tensors.count >= node.outputs.count,
      context.claim(name, node.name)
    else { return false }
    for (output, tensor) in zip(node.outputs, tensors) { replace(output, by: tensor, &graph) }
    graph.remove(id)
    return true
  }

  private func fits(_ node: Node, _ graph: Graph, _ operandBytes: Int) -> Bool {
    if exemptOperators.contains(node.op.name) { return true }
    var resultBytes = 0
    for output in node.outputs {
      guard let type = graph[output].type.tensor else { return false }
      guard let shape = type.shape else { continue }
      let (sum, overflow) = resultBytes.addingReportingOverflow(
        (try? Tensor.checkedCount(shape)).flatMap { type.dataType.byteCount(of: $0) } ?? .max / 2)
      guard !overflow else { return false }
      resultBytes = sum
    }
    return resultBytes <= max(byteBudget, operandBytes)
  }

  private func replace(_ output: ValueID, by tensor: Tensor, _ graph: inout Graph) {
    let constant = graph.addConstant(graph[output].name + ".folded", tensor)
    graph.replaceUses(of: output, with: constant)
  }
}
