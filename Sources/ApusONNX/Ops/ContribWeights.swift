// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Products with weights of few bits, as language models are published.
extension ONNXOperatorTable {
  mutating func addContribWeights(_ domain: String) {
    on("MatMulNBits", since: 1, domain: domain) { (node) throws(ApusError) in
      node.attributes.ignore("accuracy_level")
      guard try node.attributes.int("weight_prepacked", 0) == 0 else {
        throw ApusError(.notYetSupported, "weights in the order of one device ('weight_prepacked')")
      }
      let weights = try node.blockWeights()
      let turned = try node.emit(Transpose(permutation: [1, 0]), [weights])
      let product = try node.emit(MatMul(), [try node.operand(0), turned])
      guard let bias = node.optional(5) else { return try node.result(Identity(), [product]) }
      return try node.result(Add(), [product, bias])
    }
  }
}

extension NodeImport {
  /// `[N, K]` real weights: bytes hold several numbers, low bits first, and each block of a row has a
  /// scale and a zero point.
  fileprivate func blockWeights() throws(ApusError) -> ValueID {
    let bits = try attributes.int("bits", 4)
    guard [2, 4, 8].contains(bits) else {
      throw ApusError(.invalidAttribute, "'bits' is \(bits), not 2, 4 or 8")
    }
    let k = try attributes.int("K")
    let n = try attributes.int("N")
    let size = try attributes.int("block_size")
    guard k > 0, n > 0, size > 0, size.isMultiple(of: 8 / bits) else {
      throw ApusError(.invalidAttribute, "weights of \(n) by \(k) in blocks of \(size)")
    }
    let type = try tensorType(0).dataType
    let blocks = (k - 1) / size + 1
    let numbers = try emit(Cast(to: type), [try unpacked(try operand(1), bits, [n, blocks, size])])
    var zero = try scalar(Double(1 << (bits - 1)), type)
    if let given = optional(3) {
      var flat = given
      if try tensorType(3).dataType == .uint8 {
        let padded = (blocks * bits + 7) / 8 * 8 / bits
        flat = try unpacked(given, bits, [n, padded])
        flat = try emit(
          Slice(), [flat, try vector([0]), try vector([blocks]), try vector([1])])
        flat = try emit(Cast(to: type), [flat])
      }
      zero = flat
    }
    let scales = try emit(Reshape(), [try operand(2), try vector([n, blocks])])
    guard let groups = optional(4) else {
      if optional(3) != nil { zero = try emit(Reshape(), [zero, try vector([n, blocks, 1])]) }
      let scale = try emit(Unsqueeze(), [scales, try vector([2])])
      let real = try emit(Mul(), [try emit(Sub(), [numbers, zero]), scale])
      return try cut(real, n, k)
    }
    // Each column names its block.
    let columns = try cut(numbers, n, k)
    let index = try emit(
      Slice(), [groups, try vector([0]), try vector([k]), try vector([0])])
    if optional(3) != nil {
      zero = try emit(Reshape(), [zero, try vector([n, blocks])])
      zero = try emit(Gather(axis: 1), [zero, index])
    }
    let scale = try emit(Gather(axis: 1), [scales, index])
    return try emit(Mul(), [try emit(Sub(), [columns, zero]), scale])
  }

  /// Blocks joined to rows of `k` numbers.
  private func cut(_ value: ValueID, _ n: Int, _ k: Int) throws(ApusError) -> ValueID {
    let rows = try emit(Reshape(), [value, try vector([n, -1])])
    return try emit(Slice(), [rows, try vector([0]), try vector([k]), try vector([1])])
  }

  /// The numbers of `bits` bits in bytes, as bytes of their own.
  private func unpacked(_ bytes: ValueID, _ bits: Int, _ shape: [Int]) throws(ApusError) -> ValueID {
    guard bits < 8 else { return try emit(Reshape(), [bytes, try vector(shape)]) }
    let flat = try emit(Reshape(), [bytes, try vector([-1, 1])])
    let mask = try scalar(Double((1 << bits) - 1), .uint8)
    var parts: [ValueID] = []
    for shift in stride(from: 0, to: 8, by: bits) {
      let moved = try emit(BitShift(direction: .right), [flat, try scalar(Double(shift), .uint8)])
      parts.append(try emit(BitwiseAnd(), [moved, mask]))
    }
    let joined = try emit(Concat(axis: 1), parts)
    return try emit(Reshape(), [joined, try vector(shape)])
  }
}
