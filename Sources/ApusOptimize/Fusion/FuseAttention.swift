// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `softmax(q k^T * s + mask) v -> Attention(q, k, v, mask)`, for operands of three or four axes, so that
/// scores need not be stored. The factor may be on a side of the first product or behind it, and heads that were
/// taken out of rows by transposes are read in the rows. Results differ by the roundings in between; BF16
/// weights are rounded before they are divided by their sum.
public struct FuseAttention: Pass {
  public let name = "FuseAttention"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      guard let chain = AttentionChain(endingWith: id, graph) else { continue }
      if let reason = chain.refusal {
        context.refuse(name, graph[id].name, because: reason)
        continue
      }
      guard context.claim(name, graph[id].name) else { continue }
      try chain.replace(&graph, rule: name)
      count += 1
    }
    return count
  }
}

/// The nodes of attention that was written out, found from its last product backwards.
private struct AttentionChain {
  /// A side of a product.
  struct Side {
    /// Its value, with axes batch, head, place and element, or batch, place, head and element.
    var value: ValueID
    /// Whether heads lie side by side in the rows of places.
    var isSideBySide = false
    /// Whether the value has no axis of heads; `dims` has one of size 1.
    var hasOneHead = false
    var dims: [Dim]

    var batch: Dim { dims[0] }
    var heads: Dim { isSideBySide ? dims[2] : dims[1] }
    var places: Dim { isSideBySide ? dims[1] : dims[2] }
    var width: Dim { dims[3] }
  }

  private var nodes: [NodeID] = []
  private var scale = 1.0
  private var mask: ValueID?
  private var sides: [Side] = []
  private var type = DataType.float32
  /// The last value that is replaced, the type it has, and whether heads are put side by side on the way.
  private var result: ValueID
  private var resultType: DataType?
  private var joinsHeads = false
  /// Why the chain stays as it is; nil when it can be replaced.
  private(set) var refusal: String?

  /// Reads the chain; nil when the node is not the second product of anything like attention.
  init?(endingWith id: NodeID, _ graph: Graph) {
    let node = graph[id]
    guard let product = node.op as? MatMul, node.outputs.count == 1, let left = node.inputs[0],
      let right = node.inputs[1], let type = graph[left].type.tensor?.dataType,
      let values = graph[right].type.tensor, values.dataType == type
    else { return nil }
    result = node.outputs[0]
    nodes = [id]
    self.type = type
    guard var value = softmaxOperand(left, graph) else { return nil }
    guard let scores = graph[value].type.tensor?.dims else { return nil }
    var first: (node: Node, op: MatMul)?
    while first == nil {
      guard let producer = single(value, graph) else { return nil }
      nodes.append(producer)
      if let op = graph[producer].op as? MatMul {
        first = (graph[producer], op)
      } else {
        guard let next = stepBack(producer, scores, graph) else { return nil }
        value = next
      }
    }
    guard let first, graph[value].type.tensor?.dims == scores else { return nil }
    refusal = refusal ?? read(first.node, first.op, product, right, graph)
    if refusal == nil { absorbReaders(graph) }
  }

  /// The node that makes a value nobody else reads.
  private func single(_ value: ValueID, _ graph: Graph) -> NodeID? {
    graph.useCount(value) == 1 && !graph.isOutput(value) ? graph[value].producer : nil
  }

  /// What the softmax whose result, maybe rounded, the second product reads is of.
  private mutating func softmaxOperand(_ weights: ValueID, _ graph: Graph) -> ValueID? {
    guard var producer = single(weights, graph) else { return nil }
    if (graph[producer].op as? Cast)?.to == .bfloat16 {
      nodes.append(producer)
      guard let value = graph[producer].inputs[0], let next = single(value, graph) else { return nil }
      producer = next
    }
    guard let softmax = graph[producer].op as? Softmax, let value = graph[producer].inputs[0],
      let input = graph[value].type.tensor, input.dataType == .float32, let rank = input.rank,
      softmax.axis == -1 || softmax.axis == rank - 1
    else { return nil }
    nodes.append(producer)
    return value
  }

  /// Takes in a node between the first product and the softmax and gives what it is of.
  private mutating func stepBack(_ id: NodeID, _ scores: [Dim], _ graph: Graph) -> ValueID? {
    if let (value, factor) = Self.scaling(id, graph) {
      // Scores are scaled before the mask is added: going back, the mask comes first.
      scale *= factor
      return value
    }
    guard let term = PointwiseTerm(graph[id], graph), term.operands.count == 2,
      case .binary(.add, .input, .input) = term.expression
    else { return nil }
    let candidates = term.operands.filter { isScores($0, scores, graph) }
    guard candidates.count == 1, let value = candidates.first,
      let other = term.operands.first(where: { $0 != value })
    else { return nil }
    if scale != 1 {
      refusal = "its mask is scaled with the scores"
    } else if mask != nil {
      refusal = "it has two masks"
    } else if !isMask(other, scores, graph) {
      refusal = "'\(graph[other].name)' is no mask with a number for every key"
    }
    mask = other
    return value
  }

  /// Whether a value is what the chain goes on with: of the scores' shape and made for it alone.
  private func isScores(_ value: ValueID, _ scores: [Dim], _ graph: Graph) -> Bool {
    guard graph[value].type.tensor?.dims == scores, let producer = single(value, graph) else {
      return false
    }
    let op = graph[producer].op
    return op is MatMul || op is Add || Self.scaling(producer, graph) != nil
  }

  private func isMask(_ value: ValueID, _ scores: [Dim], _ graph: Graph) -> Bool {
    guard let type = graph[value].type.tensor, type.dataType == .float32, let dims = type.dims,
      !dims.isEmpty, dims.count <= scores.count, dims.last == scores.last
    else { return false }
    return zip(dims.reversed(), scores.reversed()).allSatisfy { $0 == $1 || $0.value == 1 }
  }

  /// What a node multiplies by which number, without changing its shape.
  private static func scaling(_ id: NodeID, _ graph: Graph) -> (ValueID, Double)? {
    guard let term = PointwiseTerm(graph[id], graph), term.operands.count == 1,
      let value = term.operands.first,
      graph[value].type == graph[graph[id].outputs[0]].type
    else { return nil }
    switch term.expression {
    case .binary(.multiply, .input, .const(let factor)), .binary(.multiply, .const(let factor), .input):
      return (value, factor)
    case .binary(.divide, .input, .const(let divisor)) where divisor != 0: return (value, 1 / divisor)
    default: return nil
    }
  }

  // MARK: Operands

  /// Reads the sides of both products; the reason if they have no kernel.
  private mutating func read(
    _ node: Node, _ first: MatMul, _ second: MatMul, _ right: ValueID, _ graph: Graph
  ) -> String? {
    guard let left = node.inputs[0], let keys = node.inputs[1] else { return "an operand is missing" }
    let sums: [DataType?] = type == .float32 ? [nil, .float32] : [.float32]
    guard type == .float32 || type == .bfloat16,
      [first, second].allSatisfy({
        sums.contains($0.sumType) && $0.leftZero == 0 && $0.rightZero == 0
      }), !second.transposesRight,
      [left, keys].allSatisfy({ graph[$0].type.tensor?.dataType == type })
    else { return "its products are of types without kernels" }
    guard let q = side(left, isExchanged: false, isScaled: true, graph),
      let k = side(keys, isExchanged: !first.transposesRight, isScaled: true, graph),
      let v = side(right, isExchanged: false, isScaled: false, graph)
    else { return "its operands have other axes than batch, head, place and element" }
    guard q.hasOneHead == k.hasOneHead, q.hasOneHead == v.hasOneHead else {
      return "its operands have different numbers of axes"
    }
    guard q.batch == k.batch, q.batch == v.batch, k.heads == v.heads, k.places == v.places,
      q.width == k.width, q.heads == k.heads || k.heads.value == 1
    else { return "its operands are broadcast" }
    guard let width = q.width.value, let valueWidth = v.width.value, width > 0, valueWidth > 0,
      max(width, valueWidth) <= Self.widest, type == .float32 || width % 2 == 0
    else { return "its heads are of a width without kernels" }
    guard scale.isFinite else { return "its factor is not finite" }
    sides = [q, k, v]
    return nil
  }

  /// Kernels keep a row of weighted sums in the first-level cache.
  private static let widest = 1024

  /// Follows a side of a product back through factors and transposes. `isExchanged` says that its last
  /// two axes are, which a transpose must undo.
  private mutating func side(
    _ value: ValueID, isExchanged: Bool, isScaled: Bool, _ graph: Graph
  ) -> Side? {
    var value = isScaled ? unscaled(value, graph) : value
    if isExchanged {
      guard let (permutation, source) = Self.transposed(value, graph),
        [[0, 2, 1], [0, 1, 3, 2], [0, 2, 3, 1]].contains(permutation)
      else { return nil }
      value = isScaled ? unscaled(source, graph) : source
      if permutation == [0, 2, 3, 1] { return sideBySide(value, graph) }
    }
    guard let dims = graph[value].type.tensor?.dims else { return nil }
    if dims.count == 3 {
      return Side(value: value, hasOneHead: true, dims: [dims[0], 1, dims[1], dims[2]])
    }
    guard dims.count == 4 else { return nil }
    if let (permutation, source) = Self.transposed(value, graph), permutation == [0, 2, 1, 3],
      dims[1].value != nil
    {
      return sideBySide(isScaled ? unscaled(source, graph) : source, graph)
    }
    return Side(value: value, dims: dims)
  }

  private func sideBySide(_ value: ValueID, _ graph: Graph) -> Side? {
    guard let dims = graph[value].type.tensor?.dims, dims.count == 4, dims[2].value != nil,
      dims[3].value != nil
    else { return nil }
    return Side(value: value, isSideBySide: true, dims: dims)
  }

  private static func transposed(_ value: ValueID, _ graph: Graph) -> ([Int], ValueID)? {
    guard let producer = graph[value].producer, let op = graph[producer].op as? Transpose,
      let permutation = op.permutation, let source = graph[producer].inputs[0]
    else { return nil }
    return (permutation, source)
  }

  /// Takes numbers that a side is multiplied with into the factor of the scores.
  private mutating func unscaled(_ value: ValueID, _ graph: Graph) -> ValueID {
    var value = value
    while let producer = single(value, graph), let (source, factor) = Self.scaling(producer, graph) {
      scale *= factor
      value = source
    }
    return value
  }

  /// Takes in the rounding of the result and the transpose that puts its heads side by side.
  private mutating func absorbReaders(_ graph: Graph) {
    func onlyReader(_ value: ValueID) -> NodeID? {
      graph.useCount(value) == 1 && !graph.isOutput(value) ? graph[value].consumers.first : nil
    }
    if type == .bfloat16 {
      resultType = .float32
      if let reader = onlyReader(result), (graph[reader].op as? Cast)?.to == .bfloat16 {
        nodes.append(reader)
        result = graph[reader].outputs[0]
        resultType = nil
      }
    }
    if sides[0].isSideBySide, let reader = onlyReader(result),
      (graph[reader].op as? Transpose)?.permutation == [0, 2, 1, 3]
    {
      nodes.append(reader)
      result = graph[reader].outputs[0]
      joinsHeads = true
    }
  }

  // MARK: The operator

  func replace(_ graph: inout Graph, rule: String) throws(ApusError) {
    var patch = GraphPatch(rule: rule, replacing: nodes)
    var op = Attention(
      queryHeads: sides[0].heads.value, keyHeads: sides[1].heads.value, scale: scale,
      sumType: resultType, keepsNaN: true)
    var inputs: [GraphPatch.Reference?] = []
    let axis = try Tensor([1], .int64, shape: [1])
    let heads = sides[0].hasOneHead ? patch.constant("heads.axis", axis) : nil
    for (index, side) in sides.enumerated() {
      if side.hasOneHead {
        inputs.append(patch.add(Unsqueeze(), [.existing(side.value), heads]))
      } else if !side.isSideBySide {
        inputs.append(.existing(side.value))
      } else if index > 0 || joinsHeads {
        inputs.append(try Self.rows(side, graph, &patch))
      } else {
        // The result has the query's axes.
        inputs.append(patch.add(Transpose(permutation: [0, 2, 1, 3]), [.existing(side.value)]))
      }
    }
    if !joinsHeads { op.queryHeads = nil }
    if !sides[1].isSideBySide && !sides[2].isSideBySide { op.keyHeads = nil }
    if let mask {
      // One that differs between the members of a batch has no axis of heads either.
      let isByMember = sides[0].hasOneHead && graph[mask].type.tensor?.rank == 3
      inputs.append(isByMember ? patch.add(Unsqueeze(), [.existing(mask), heads]) : .existing(mask))
    }
    var output = patch.add(op, inputs)
    if sides[0].hasOneHead { output = patch.add(Squeeze(), [output, heads]) }
    if joinsHeads, let heads = sides[0].heads.value, let width = sides[2].width.value {
      let sizes = try Tensor([0, 0, Int64(heads), Int64(width)], .int64, shape: [4])
      output = patch.add(Reshape(), [output, patch.constant("heads", sizes)])
    }
    patch.replace(result, with: output)
    try patch.apply(to: &graph)
  }

  /// A side with the elements of all heads along its last axis: what its heads were taken out of.
  private static func rows(_ side: Side, _ graph: Graph, _ patch: inout GraphPatch) throws(ApusError)
    -> GraphPatch.Reference
  {
    if let producer = graph[side.value].producer, graph[producer].op is Reshape,
      let source = graph[producer].inputs[0], let dims = graph[source].type.tensor?.dims,
      let heads = side.heads.value, let width = side.width.value,
      dims == [side.batch, side.places, Dim(heads * width)]
    {
      return .existing(source)
    }
    let sizes = try Tensor([0, 0, -1], .int64, shape: [3])
    return patch.add(Reshape(), [.existing(side.value), patch.constant("rows", sizes)])
  }
}
