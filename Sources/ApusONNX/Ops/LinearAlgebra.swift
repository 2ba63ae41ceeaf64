// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Matrix products.
  mutating func addLinearAlgebra() {
    op("MatMul", since: 1) { _ in MatMul() }
    op("Einsum", since: 12) { (node) throws(ApusError) in
      Einsum(equation: try node.attributes.string("equation"))
    }
    op("Det", since: 11) { _ in Det() }
    on("Gemm", since: 7) { (node) throws(ApusError) in try node.gemm() }
    for name in ["FusedMatMul", "TransposeMatMul"] {
      on(name, since: 1, domain: "com.microsoft") { (node) throws(ApusError) in
        let alpha = try node.attributes.float("alpha", 1)
        let a = try node.turned(0, batch: "transBatchA", matrix: "transA")
        let b = try node.turned(1, batch: "transBatchB", matrix: "transB")
        if alpha == 1 { return try node.result(MatMul(), [a, b]) }
        let product = try node.emit(MatMul(), [a, b])
        let type = try node.tensorType(0).dataType
        return try node.result(Mul(), [product, try node.scalar(alpha, type)])
      }
    }
  }
}

extension NodeImport {
  /// An operand whose first axis becomes the one before the last, and whose last two axes change places.
  fileprivate func turned(_ index: Int, batch: String, matrix: String) throws(ApusError) -> ValueID {
    let value = try operand(index)
    let isBatchTurned = try attributes.flag(batch, false)
    let isTurned = try attributes.flag(matrix, false)
    guard isBatchTurned || isTurned else { return value }
    let rank = try rank(index)
    var order = Array(0..<rank)
    guard rank >= 2 else { return value }
    if isBatchTurned { order.insert(order.removeFirst(), at: rank - 2) }
    if isTurned { order.swapAt(rank - 1, rank - 2) }
    return try emit(Transpose(permutation: order), [value])
  }

  /// `alpha * op(a) * op(b) + beta * c` as a product, scalings and a sum.
  ///
  /// - Parameter isResult: Whether it is the node's result and not on the way to it.
  func gemm(isResult: Bool = true) throws(ApusError) -> [ValueID] {
    func finish(_ op: any Operator, _ operands: [ValueID]) throws(ApusError) -> [ValueID] {
      isResult ? try result(op, operands) : [try emit(op, operands)]
    }
    let alpha = try attributes.float("alpha", 1)
    let beta = try attributes.float("beta", 1)
    let transposesA = try attributes.flag("transA", false)
    let transposesB = try attributes.flag("transB", false)
    for index in 0...1 {
      if let rank = try tensorType(index).rank, rank != 2 {
        throw ApusError(.typeMismatch, "operand \(index) has rank \(rank), Gemm takes matrices")
      }
    }
    let type = try tensorType(0).dataType
    let a = try transposed(0, if: transposesA)
    let b = try transposed(1, if: transposesB)
    let hasSum = optional(2) != nil && beta != 0
    if !hasSum, alpha == 1 { return try finish(MatMul(), [a, b]) }
    var product = try emit(MatMul(), [a, b])
    if alpha != 1 {
      let factor = try scalar(alpha, type)
      if !hasSum { return try finish(Mul(), [product, factor]) }
      product = try emit(Mul(), [product, factor])
    }
    var c = try operand(2)
    if beta != 1 { c = try emit(Mul(), [c, try scalar(beta, type)]) }
    return try finish(Add(), [product, c])
  }

  private func transposed(_ index: Int, if condition: Bool) throws(ApusError) -> ValueID {
    let value = try operand(index)
    return condition ? try emit(Transpose(permutation: [1, 0]), [value]) : value
  }
}
