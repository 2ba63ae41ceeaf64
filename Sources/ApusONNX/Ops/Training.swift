// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Optimizers of training graphs (`ai.onnx.preview.training`): one step for a list of parameters.
  mutating func addTraining() {
    let domain = "ai.onnx.preview.training"
    on("Momentum", since: 1, domain: domain) { (node) throws(ApusError) in try node.momentum() }
    on("Adagrad", since: 1, domain: domain) { (node) throws(ApusError) in try node.adagrad() }
    on("Adam", since: 1, domain: domain) { (node) throws(ApusError) in try node.adam() }
  }
}

/// Arithmetic on values of one type while a node is imported.
private struct Terms {
  let node: NodeImport
  let type: DataType

  func number(_ value: Double) throws(ApusError) -> ValueID { try node.scalar(value, type) }
  func add(_ a: ValueID, _ b: ValueID) throws(ApusError) -> ValueID { try node.emit(Add(), [a, b]) }
  func subtract(_ a: ValueID, _ b: ValueID) throws(ApusError) -> ValueID {
    try node.emit(Sub(), [a, b])
  }
  func multiply(_ a: ValueID, _ b: ValueID) throws(ApusError) -> ValueID {
    try node.emit(Mul(), [a, b])
  }
  func scale(_ a: ValueID, _ factor: Double) throws(ApusError) -> ValueID {
    try multiply(a, try number(factor))
  }
  func divide(_ a: ValueID, _ b: ValueID) throws(ApusError) -> ValueID {
    try node.emit(Div(), [a, b])
  }
  func root(_ a: ValueID) throws(ApusError) -> ValueID { try node.emit(Sqrt(), [a]) }
}

extension NodeImport {
  /// The operands after rate and step count, `kinds` lists of equal length one after the other, as one
  /// group for each parameter.
  private func groups(_ kinds: Int) throws(ApusError) -> [[ValueID]] {
    let count = (inputs.count - 2) / kinds
    guard count > 0, inputs.count == 2 + count * kinds else {
      throw ApusError(.invalidGraph, "\(inputs.count - 2) operands are not \(kinds) for each parameter")
    }
    var result: [[ValueID]] = []
    for parameter in 0..<count {
      var group: [ValueID] = []
      for kind in 0..<kinds { group.append(try operand(2 + kind * count + parameter)) }
      result.append(group)
    }
    return result
  }

  /// Results, given for each parameter, as lists one after the other.
  private func regrouped(_ groups: [[ValueID]]) -> [ValueID] {
    guard let kinds = groups.first?.count else { return [] }
    return (0..<kinds).flatMap { kind in groups.map { $0[kind] } }
  }

  private func terms(_ value: ValueID) throws(ApusError) -> Terms {
    guard case .tensor(let tensor) = type(of: value) else {
      throw ApusError(.typeMismatch, "a parameter is \(type(of: value))")
    }
    return Terms(node: self, type: tensor.dataType)
  }

  /// The step count as a number of the parameter's type.
  private func step(_ terms: Terms) throws(ApusError) -> ValueID {
    try emit(Cast(to: terms.type), [try operand(1)])
  }

  fileprivate func momentum() throws(ApusError) -> [ValueID] {
    let (alpha, beta) = (try attributes.float("alpha"), try attributes.float("beta"))
    let decay = try attributes.float("norm_coefficient")
    let mode = try attributes.string("mode")
    guard mode == "standard" || mode == "nesterov" else {
      throw ApusError(.invalidAttribute, "'mode' is '\(mode)', not standard or nesterov")
    }
    var results: [[ValueID]] = []
    for group in try groups(3) {
      let (x, gradient, velocity) = (group[0], group[1], group[2])
      let t = try terms(x)
      let g = try t.add(try t.scale(x, decay), gradient)
      // The first step takes the whole gradient.
      let isLater = try emit(Greater(), [try step(t), try t.number(0)])
      let factor = try emit(Where(), [isLater, try t.number(beta), try t.number(1)])
      let next = try t.add(try t.scale(velocity, alpha), try t.multiply(factor, g))
      let direction = mode == "standard" ? next : try t.add(g, try t.scale(next, alpha))
      results.append([try t.subtract(x, try t.multiply(try operand(0), direction)), next])
    }
    return regrouped(results)
  }

  fileprivate func adagrad() throws(ApusError) -> [ValueID] {
    let decayFactor = try attributes.float("decay_factor", 0)
    let epsilon = try attributes.float("epsilon", 1e-6)
    let decay = try attributes.float("norm_coefficient", 0)
    var results: [[ValueID]] = []
    for group in try groups(3) {
      let (x, gradient, squares) = (group[0], group[1], group[2])
      let t = try terms(x)
      let slowed = try t.add(try t.number(1), try t.scale(try step(t), decayFactor))
      let rate = try t.divide(try operand(0), slowed)
      let g = try t.add(try t.scale(x, decay), gradient)
      let next = try t.add(squares, try t.multiply(g, g))
      let divisor = try t.add(try t.root(next), try t.number(epsilon))
      let change = try t.divide(try t.multiply(rate, g), divisor)
      results.append([try t.subtract(x, change), next])
    }
    return regrouped(results)
  }

  fileprivate func adam() throws(ApusError) -> [ValueID] {
    let (alpha, beta) = (try attributes.float("alpha", 0.9), try attributes.float("beta", 0.999))
    let epsilon = try attributes.float("epsilon", 1e-6)
    let decay = try attributes.float("norm_coefficient", 0)
    let decayAfter = try attributes.float("norm_coefficient_post", 0)
    var results: [[ValueID]] = []
    for group in try groups(4) {
      let (x, gradient, velocity, squares) = (group[0], group[1], group[2], group[3])
      let t = try terms(x)
      let g = try t.add(try t.scale(x, decay), gradient)
      let v = try t.add(try t.scale(velocity, alpha), try t.scale(g, 1 - alpha))
      let h = try t.add(try t.scale(squares, beta), try t.scale(try t.multiply(g, g), 1 - beta))
      // The averages start at zero, which the first steps make up for.
      let count = try step(t)
      func missing(_ base: Double) throws(ApusError) -> ValueID {
        try t.subtract(try t.number(1), try emit(Pow(), [try t.number(base), count]))
      }
      let corrected = try t.divide(
        try t.multiply(try operand(0), try t.root(try missing(beta))), try missing(alpha))
      let isLater = try emit(Greater(), [count, try t.number(0)])
      let rate = try emit(Where(), [isLater, corrected, try operand(0)])
      let divisor = try t.add(try t.root(h), try t.number(epsilon))
      let moved = try t.subtract(x, try t.multiply(rate, try t.divide(v, divisor)))
      results.append([try t.scale(moved, 1 - decayAfter), v, h])
    }
    return regrouped(results)
  }
}
