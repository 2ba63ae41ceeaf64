// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Vertical fusion: an anchor (matrix product, convolution) absorbs the pointwise node that alone
/// reads its result, as far as kernels can apply it to a tile in registers: extra operands must be
/// scalars, vectors along the last axis, or tensors of the result's own shape.
public struct FuseEpilogues: Pass {
  public let name = "FuseEpilogues"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    // Later anchors first: of two convolutions that meet in an addition, the later one adds.
    for id in try graph.topologicalOrder().reversed() where graph.contains(id) {
      if try fuse(id, &graph, context) { count += 1 }
    }
    return count
  }

  private func fuse(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    let (anchor, anchorCount, epilogue) = parts(node)
    let types = node.inputs.prefix(anchorCount).map { id in id.flatMap { graph[$0].type.tensor } }
    guard let anchor, anchor.ownsEpilogue(types) else { return false }
    let value = node.outputs[0]
    guard node.outputs.count == 1, !graph.isOutput(value),
      let type = graph[value].type.tensor?.dataType, type == .int32 || PointwiseTerm.isJoinable(type),
      let readerID = graph[value].consumers.first
    else { return false }
    guard graph[value].consumers.allSatisfy({ $0 == readerID }) else {
      context.refuse(name, node.name, because: "its result has several readers")
      return false
    }
    let reader = graph[readerID]
    guard let term = PointwiseTerm(reader, graph) else { return false }
    if let reason = refusal(term, value, reader, graph) {
      context.refuse(name, node.name, because: reason)
      return false
    }
    var extras = Array(node.inputs.dropFirst(anchorCount))
    let more = Set(term.operands).subtracting(extras.compactMap { $0 }).subtracting([value])
    guard extras.count + more.count <= anchor.epilogueOperandLimit else {
      context.refuse(name, node.name, because: "more than \(anchor.epilogueOperandLimit) operands")
      return false
    }
    guard context.claim(name, node.name) else { return false }
    let expression = term.expression.substituting { index in
      let operand = term.operands[index]
      if operand == value { return epilogue.expression }
      if let known = extras.firstIndex(of: operand) { return .input(known + 1) }
      extras.append(operand)
      return .input(extras.count)
    }
    // Behind exact sums one rounding more or less does not matter.
    let isExact =
      graph[node.inputs[0] ?? value].type.tensor?.dataType == .uint8 && !(anchor is Prologued)
    let fused = Fused(
      anchor: anchor, anchorInputCount: anchorCount,
      epilogue: Epilogue(
        isExact ? expression.mergingScales() : expression, extraCount: extras.count))
    var patch = GraphPatch(rule: name, replacing: [id, readerID])
    let inputs = (node.inputs.prefix(anchorCount) + extras).map { id in
      id.map { GraphPatch.Reference.existing($0) }
    }
    patch.replace(reader.outputs[0], with: patch.add(fused, inputs))
    try patch.apply(to: &graph)
    return true
  }

  private func parts(_ node: Node) -> ((any AnchorOperator)?, Int, Epilogue) {
    if let fused = node.op as? Fused {
      return (fused.anchor as? any AnchorOperator, fused.anchorInputCount, fused.epilogue)
    }
    return (node.op as? any AnchorOperator, node.inputs.count, .identity)
  }

  private func refusal(_ term: PointwiseTerm, _ value: ValueID, _ reader: Node, _ graph: Graph)
    -> String?
  {
    guard let dims = graph[value].type.tensor?.dims, let last = dims.last else {
      return "the result's rank is open"
    }
    guard let result = graph[reader.outputs[0]].type.tensor, result.dims == dims,
      PointwiseTerm.isJoinable(result.dataType)
    else { return "'\(reader.name)' changes the shape, or to a type without kernels" }
    guard term.operands.count <= PointwiseTerm.operandLimit else { return "too many operands" }
    for operand in term.operands where operand != value {
      guard let type = graph[operand].type.tensor, let other = type.dims,
        type.dataType == .int32 || PointwiseTerm.isJoinable(type.dataType)
      else { return "'\(graph[operand].name)' is of a type without kernels" }
      let leading = other.dropLast().allSatisfy { $0.value == 1 }
      let isScalar = leading && (other.last?.value ?? 1) == 1
      let isVector = leading && other.last == last && other.count <= dims.count
      guard other == dims || (isScalar || isVector) && type.dataType.bitWidth == 32 else {
        return "'\(graph[operand].name)' of shape \(type) is neither a scalar, a vector along the last axis nor of the result's shape"
      }
    }
    return nil
  }
}
