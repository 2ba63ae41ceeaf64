// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Definitions of operator set 6, whose broadcasting has to be asked for, for the old models that are
  /// still passed on.
  mutating func addLegacy() {
    let binary: [(String, any Operator)] = [
      ("Add", Add()), ("Sub", Sub()), ("Mul", Mul()), ("Div", Div()), ("Pow", Pow()),
      ("And", And()), ("Or", Or()), ("Xor", Xor()), ("Equal", Equal()), ("Less", Less()),
      ("Greater", Greater()),
    ]
    for (name, op) in binary {
      on(name, since: 1) { (node) throws(ApusError) in
        node.attributes.ignore("consumed_inputs")
        return try node.result(op, [try node.operand(0), try node.aligned()])
      }
    }
    on("PRelu", since: 6) { (node) throws(ApusError) in
      // A slope for each channel.
      let rank = try node.rank(0)
      guard try node.rank(1) == 1, rank > 2 else { return try node.result(PRelu(), node.inputs) }
      let slope = try node.emit(
        Unsqueeze(), [try node.operand(1), try node.vector(Array(1..<(rank - 1)))])
      return try node.result(PRelu(), [try node.operand(0), slope])
    }
    op("BatchNormalization", since: 6) { (node) throws(ApusError) in
      guard try node.attributes.flag("is_test", false), try node.attributes.flag("spatial", true) else {
        throw ApusError(
          .notYetSupported, "BatchNormalization of version 6 in training, or not over channels")
      }
      node.attributes.ignore("consumed_inputs", "momentum")
      return BatchNormalization(epsilon: try node.attributes.float("epsilon", 1e-5))
    }
    on("Gemm", since: 6) { (node) throws(ApusError) in
      node.attributes.ignore("broadcast")
      return try node.gemm()
    }
    op("Dropout", since: 6) { (node) throws(ApusError) in
      node.attributes.ignore("ratio", "is_test")
      return Identity()
    }
  }
}

extension NodeImport {
  /// Operand 1 with axes behind its own, so that it lies along operand 0 from attribute `axis` on.
  fileprivate func aligned() throws(ApusError) -> ValueID {
    let value = try operand(1)
    guard try attributes.flag("broadcast", false), let axis = try attributes.optionalInt("axis") else {
      return value
    }
    let (rank, own) = (try rank(0), try rank(1))
    let start = axis < 0 ? axis + rank : axis
    let missing = rank - own - start
    guard start >= 0, missing >= 0 else {
      throw ApusError(.invalidAttribute, "'axis' is \(axis) for operands of \(rank) and \(own) axes")
    }
    guard missing > 0 else { return value }
    return try emit(Unsqueeze(), [value, try vector(Array(own..<(own + missing)))])
  }
}
