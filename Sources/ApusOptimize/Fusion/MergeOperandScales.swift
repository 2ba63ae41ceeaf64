// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// `(sum * s + b) * c -> sum * (s c) + (b c)` behind sums of integers, for constant vectors `s` and `b`
/// and a number `c`, and `(sum + t) * s + b -> sum * s + (t s + b)`, `sum + a + b -> sum + (a + b)` for constant vectors
/// `t`, `a` and `b`: what a quantised network leaves behind a product becomes one multiply-add. Results may
/// differ in the last place.
public struct MergeOperandScales: Pass {
  public let name = "MergeOperandScales"

  /// Creates the pass.
  public init() {}

  public func run(on graph: inout Graph, in context: PassContext) throws(ApusError) -> Int {
    var count = 0
    for id in try graph.topologicalOrder() where graph.contains(id) {
      if try merge(id, &graph, context) { count += 1 }
    }
    return count
  }

  private func merge(_ id: NodeID, _ graph: inout Graph, _ context: PassContext) throws(ApusError)
    -> Bool
  {
    let node = graph[id]
    guard let fused = node.op as? Fused, node.outputs.count == 1,
      let first = node.inputs.first ?? nil, graph[first].type.tensor?.dataType == .uint8
    else { return false }
    let extras = Array(node.inputs.dropFirst(fused.anchorInputCount))
    var merger = OperandMerger(
      operands: extras.map { value in
        guard let constant = value.flatMap({ graph[$0].constant }),
          constant.dataType == .float32 || constant.dataType == .int32
        else { return nil }
        return constant.doubles()
      })
    let merged = merger.merge(fused.epilogue.expression)
    guard merger.changes > 0, context.claim(name, node.name) else { return false }
    var patch = GraphPatch(rule: name, replacing: [id])
    var inputs: [GraphPatch.Reference?] = node.inputs.prefix(fused.anchorInputCount).map {
      $0.map { .existing($0) }
    }
    // Operands that the expression still reads, in their order, then those that were made.
    var places: [Int: Int] = [:]
    for index in 0..<extras.count + merger.made.count where merged.reads(index + 1) {
      places[index] = places.count
      if index < extras.count {
        inputs.append(extras[index].map { .existing($0) })
      } else {
        let new = merger.made[index - extras.count]
        guard let source = extras[new.source], let like = graph[source].constant else { return false }
        let tensor = try Tensor(new.values, .float32, shape: like.shape)
        inputs.append(patch.constant(graph[source].name, tensor))
      }
    }
    let expression = merged.substituting { $0 == 0 ? .input(0) : .input((places[$0 - 1] ?? 0) + 1) }
    let op = Fused(
      anchor: fused.anchor, anchorInputCount: fused.anchorInputCount,
      epilogue: Epilogue(expression, extraCount: places.count))
    patch.replace(node.outputs[0], with: patch.add(op, inputs))
    try patch.apply(to: &graph)
    return true
  }
}

/// Moves numbers that expressions are multiplied with, and added to, into their constant operands.
private struct OperandMerger {
  /// What changes an operand into another one.
  struct Made {
    var source: Int
    var values: [Double]
  }

  /// The elements of the constant operands; operand `n` is input `n + 1`.
  let operands: [[Double]?]
  var made: [Made] = []
  var changes = 0

  init(operands: [[Double]?]) { self.operands = operands }

  mutating func merge(_ expression: ScalarExpr) -> ScalarExpr {
    switch expression {
    case .input, .const: return expression
    case .unary(let function, let a): return .unary(function, merge(a))
    case .cast(let a, let type): return .cast(merge(a), type)
    case .select(let c, let a, let b): return .select(merge(c), merge(a), merge(b))
    case .binary(let function, let a, let b):
      let (x, y) = (merge(a), merge(b))
      if case .const(let number) = y {
        if function == .multiply, let done = changed(x, { $0.scaled(x, number) }) { return done }
        if function == .add, let done = changed(x, { $0.shifted(x, number) }) { return done }
      }
      if function == .add, let done = joined(x, y) { return done }
      return .binary(function, x, y)
    }
  }

  /// `x + y` where `y` is an operand that takes in another one of `x`.
  private mutating func joined(_ x: ScalarExpr, _ y: ScalarExpr) -> ScalarExpr? {
    guard case .input(let bias) = y, let b = values(of: bias) else { return nil }
    switch x {
    case .binary(.add, let sum, .input(let other)):
      guard let a = values(of: other), a.values.count == b.values.count else { return nil }
      return sum + make(a.root, zip(a.values, b.values).map(+))
    case .binary(.multiply, .cast(.binary(.add, let sum, .input(let term)), .float32), .input(let scale)):
      guard let t = values(of: term), let s = values(of: scale),
        t.values.count == s.values.count, s.values.count == b.values.count
      else { return nil }
      let shift = zip(zip(t.values, s.values).map(*), b.values).map(+)
      return .cast(sum, .float32) * .input(scale) + make(s.root, shift)
    default: return nil
    }
  }

  /// The elements of an operand, and the one whose shape they have; nil when the input is no constant.
  private func values(of input: Int) -> (root: Int, values: [Double])? {
    let index = input - 1
    if index >= operands.count {
      let known = made[index - operands.count]
      return (known.source, known.values)
    }
    guard index >= 0, let values = operands[index] else { return nil }
    return (index, values)
  }

  private mutating func make(_ root: Int, _ values: [Double]) -> ScalarExpr {
    changes += 1
    made.append(Made(source: root, values: values))
    return .input(operands.count + made.count)
  }

  private mutating func changed(
    _ expression: ScalarExpr, _ change: (inout OperandMerger) -> ScalarExpr?
  ) -> ScalarExpr? {
    var trial = self
    guard let result = change(&trial) else { return nil }
    self = trial
    changes += 1
    return result
  }

  /// `expression * factor`, if that takes no product of its own and changes an operand.
  private mutating func scaled(_ expression: ScalarExpr, _ factor: Double) -> ScalarExpr? {
    switch expression {
    case .input(let index): return operand(index) { $0 * factor }
    case .binary(.add, let a, let b), .binary(.subtract, let a, let b):
      guard case .binary(let function, _, _) = expression, let x = scaled(a, factor),
        let y = scaled(b, factor)
      else { return nil }
      return .binary(function, x, y)
    case .binary(.multiply, let a, .input(let index)):
      return operand(index) { $0 * factor }.map { a * $0 }
    case .binary(.multiply, .input(let index), let b):
      return operand(index) { $0 * factor }.map { $0 * b }
    case .binary(.multiply, let a, .const(let number)): return a * .const(number * factor)
    default: return nil
    }
  }

  /// `expression + term`, if an operand takes it.
  private mutating func shifted(_ expression: ScalarExpr, _ term: Double) -> ScalarExpr? {
    switch expression {
    case .input(let index): return operand(index) { $0 + term }
    case .binary(.add, let a, let b):
      if let y = shifted(b, term) { return a + y }
      return shifted(a, term).map { $0 + b }
    default: return nil
    }
  }

  /// A new operand with every element changed; nil when the input is no constant.
  private mutating func operand(_ input: Int, _ change: (Double) -> Double) -> ScalarExpr? {
    guard let source = values(of: input) else { return nil }
    made.append(Made(source: source.root, values: source.values.map(change)))
    return .input(operands.count + made.count)
  }
}

extension ScalarExpr {
  /// Whether the expression reads an input.
  fileprivate func reads(_ input: Int) -> Bool { contains { $0 == .input(input) } }
}
