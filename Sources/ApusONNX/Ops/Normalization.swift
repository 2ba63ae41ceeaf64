// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Normalisations.
  mutating func addNormalization() {
    op("BatchNormalization", since: 7) { (node) throws(ApusError) in
      guard try node.attributes.flag("spatial", true) else {
        throw ApusError(.notYetSupported, "BatchNormalization with 'spatial' = 0")
      }
      return BatchNormalization(
        epsilon: try node.attributes.float("epsilon", 1e-5),
        momentum: try node.attributes.float("momentum", 0.9),
        trainingMode: try node.attributes.flag("training_mode", false))
    }
    op("LRN", since: 1) { (node) throws(ApusError) in
      LRN(
        size: try node.attributes.int("size"), alpha: try node.attributes.float("alpha", 1e-4),
        beta: try node.attributes.float("beta", 0.75), bias: try node.attributes.float("bias", 1))
    }
    op("LayerNormalization", since: 17) { (node) throws(ApusError) in
      node.attributes.ignore("stash_type")
      return LayerNormalization(
        axis: try node.attributes.int("axis", -1),
        epsilon: try node.attributes.float("epsilon", 1e-5))
    }
    on("InstanceNormalization", since: 6) { (node) throws(ApusError) in
      try node.instanceNormalization()
    }
    // Version 18 had one scale a group; it was replaced by one a channel before anyone exported it.
    on("GroupNormalization", since: 21) { (node) throws(ApusError) in
      try node.groupNormalization()
    }
    on("RMSNormalization", since: 23) { (node) throws(ApusError) in try node.rmsNormalization() }
    on("MeanVarianceNormalization", since: 9) { (node) throws(ApusError) in
      let axes = try node.attributes.ints("axes", [0, 2, 3])
      let x = try node.operand(0)
      let type = try node.tensorType(0).dataType
      let centred = try node.centred(x, axes)
      let variance = try node.variance(ofCentred: centred, axes)
      let deviation = try node.emit(Sqrt(), [variance])
      let divisor = try node.emit(Add(), [deviation, try node.scalar(1e-9, type)])
      return try node.result(Div(), [centred, divisor])
    }
    on("LpNormalization", since: 1) { (node) throws(ApusError) in
      let p = try node.attributes.int("p", 2)
      guard p == 1 || p == 2 else { throw ApusError(.invalidAttribute, "'p' is \(p), not 1 or 2") }
      let x = try node.operand(0)
      let norm = try node.emit(
        Reduce(
          function: p == 1 ? .l1 : .l2, axes: [try node.attributes.int("axis", -1)],
          keepDims: true), [x])
      // A vector of zeros stays one.
      let zero = try node.scalar(0, try node.tensorType(0).dataType)
      let isZero = try node.emit(Equal(), [norm, zero])
      let quotient = try node.emit(Div(), [x, norm])
      return try node.result(Where(), [isZero, zero, quotient])
    }
    addSoftmax()
  }

  /// Softmax and its kin.
  private mutating func addSoftmax() {
    addSoftmax("Softmax") { Softmax(axis: $0) }
    addSoftmax("LogSoftmax") { LogSoftmax(axis: $0) }
    addSoftmax("Hardmax") { Hardmax(axis: $0) }
  }

  private mutating func addSoftmax(
    _ name: String, _ make: @escaping @Sendable (Int) -> any Operator
  ) {
    on(name, since: 1) { (node) throws(ApusError) in
      // Before version 13 all axes from `axis` on are treated as one.
      let axis = try node.attributes.int("axis", 1)
      let x = try node.operand(0)
      let rank = try node.rank(0)
      let first = axis < 0 ? axis + rank : axis
      guard first >= 0, first <= rank else {
        throw ApusError(.invalidAttribute, "'axis' is \(axis), the operand has rank \(rank)")
      }
      if first == rank - 1 { return try node.result(make(-1), [x]) }
      let flat = try node.emit(Flatten(axis: first), [x])
      let soft = try node.emit(make(-1), [flat])
      return try node.result(Reshape(), [soft, try node.emit(Shape(), [x])])
    }
    op(name, since: 13) { (node) throws(ApusError) in make(try node.attributes.int("axis", -1)) }
  }
}

extension NodeImport {
  /// `x` less its mean over `axes`.
  fileprivate func centred(_ x: ValueID, _ axes: [Int]) throws(ApusError) -> ValueID {
    let mean = try emit(Reduce(function: .mean, axes: axes, keepDims: true), [x])
    return try emit(Sub(), [x, mean])
  }

  /// The mean square over `axes`.
  fileprivate func variance(ofCentred x: ValueID, _ axes: [Int]) throws(ApusError) -> ValueID {
    let square = try emit(Mul(), [x, x])
    return try emit(Reduce(function: .mean, axes: axes, keepDims: true), [square])
  }

  /// A vector over channels, shaped to broadcast over `rank` axes.
  fileprivate func perChannel(_ value: ValueID, rank: Int) throws(ApusError) -> ValueID {
    let shape = [-1] + Array(repeating: 1, count: max(0, rank - 2))
    return try emit(Reshape(), [value, try vector(shape)])
  }

  fileprivate func instanceNormalization() throws(ApusError) -> [ValueID] {
    let rank = try rank(0)
    guard rank >= 3 else {
      throw ApusError(.typeMismatch, "the operand has rank \(rank), at least 3 is needed")
    }
    let axes = Array(2..<rank)
    let type = try tensorType(0).dataType
    let centred = try centred(try operand(0), axes)
    let variance = try variance(ofCentred: centred, axes)
    let epsilon = try scalar(try attributes.float("epsilon", 1e-5), type)
    let deviation = try emit(Sqrt(), [try emit(Add(), [variance, epsilon])])
    let scale = try perChannel(try operand(1), rank: rank)
    let bias = try perChannel(try operand(2), rank: rank)
    let scaled = try emit(Mul(), [try emit(Div(), [centred, deviation]), scale])
    return try result(Add(), [scaled, bias])
  }

  fileprivate func groupNormalization() throws(ApusError) -> [ValueID] {
    let rank = try rank(0)
    let groups = try attributes.int("num_groups")
    guard rank >= 3, groups > 0 else {
      throw ApusError(.invalidAttribute, "'num_groups' is \(groups), the operand has rank \(rank)")
    }
    attributes.ignore("stash_type")
    let x = try operand(0)
    let type = try tensorType(0).dataType
    let flat = try emit(Reshape(), [x, try vector([0, groups, -1])])
    let centred = try centred(flat, [2])
    let variance = try variance(ofCentred: centred, [2])
    let epsilon = try scalar(try attributes.float("epsilon", 1e-5), type)
    let deviation = try emit(Sqrt(), [try emit(Add(), [variance, epsilon])])
    let normal = try emit(Div(), [centred, deviation])
    let shaped = try emit(Reshape(), [normal, try emit(Shape(), [x])])
    let scaled = try emit(Mul(), [shaped, try perChannel(try operand(1), rank: rank)])
    return try result(Add(), [scaled, try perChannel(try operand(2), rank: rank)])
  }

  fileprivate func rmsNormalization() throws(ApusError) -> [ValueID] {
    let rank = try rank(0)
    let axis = try attributes.int("axis", -1)
    let first = axis < 0 ? axis + rank : axis
    guard first >= 0, first < rank else {
      throw ApusError(.invalidAttribute, "'axis' is \(axis), the operand has rank \(rank)")
    }
    attributes.ignore("stash_type")
    let x = try operand(0)
    let type = try tensorType(0).dataType
    let mean = try variance(ofCentred: x, Array(first..<rank))
    let epsilon = try scalar(try attributes.float("epsilon", 1e-5), type)
    let deviation = try emit(Sqrt(), [try emit(Add(), [mean, epsilon])])
    return try result(Mul(), [try emit(Div(), [x, deviation]), try operand(1)])
  }
}
