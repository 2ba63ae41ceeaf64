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
      let bias = node.optional(5)
      if let blocks = try node.fourBitBlocks() {
        var operands: [ValueID?] = [try node.operand(0), node.add(blocks.numbers), node.add(blocks.scales)]
        if let zeros = blocks.zeros { operands.append(node.add(zeros)) }
        let op = BlockQuantizedMatMul(block: blocks.size)
        guard let bias else { return try node.result(op, operands) }
        return try node.result(Add(), [try node.emit(op, operands), bias])
      }
      let weights = try node.blockWeights()
      let turned = try node.emit(Transpose(permutation: [1, 0]), [weights])
      let product = try node.emit(MatMul(), [try node.operand(0), turned])
      guard let bias else { return try node.result(Identity(), [product]) }
      return try node.result(Add(), [product, bias])
    }
  }
}

/// Constant weights of four bits in the order of `BlockQuantizedMatMul`.
private struct FourBitBlocks {
  let size: Int
  let numbers: Tensor
  let scales: Tensor
  let zeros: Tensor?

  /// Nil where sizes do not fit each other.
  init?(
    n: Int, k: Int, size: Int, _ bytes: Tensor, _ scales: Tensor, _ zeros: Tensor?
  ) throws(ApusError) {
    let blocks = (k - 1) / size + 1
    let stride = (blocks + 1) / 2
    guard let count = try? Tensor.checkedCount([n, blocks, size / 2]), bytes.count == count,
      scales.count == n * blocks, zeros.map({ $0.count == n * stride }) ?? true
    else { return nil }
    self.size = size
    numbers = try Tensor(.uint4, shape: [k, n])
    let (target, source) = (numbers.mutableBytes, bytes.bytes)
    for column in 0..<n {
      let start = column * blocks * (size / 2)
      for row in 0..<k {
        let number = source[start + row / 2] >> (row % 2 == 0 ? 0 : 4) & 15
        let place = row * n + column
        target[place / 2] |= place % 2 == 0 ? number : number << 4
      }
    }
    let values = scales.floats()
    self.scales = try Tensor(
      (0..<blocks * n).map { values[$0 % n * blocks + $0 / n] }, shape: [blocks, n])
    self.zeros = try zeros.map { (zeros) throws(ApusError) in
      let bytes = zeros.bytes
      let values = (0..<blocks * n).map { index -> Int64 in
        let block = index / n
        return Int64(bytes[index % n * stride + block / 2] >> (block % 2 == 0 ? 0 : 4) & 15)
      }
      return try Tensor(values, .uint8, shape: [blocks, n])
    }
  }
}

extension NodeImport {
  /// The weights of a node that `BlockQuantizedMatMul` can be: constant, of four bits, with the blocks in
  /// order; nil for others.
  fileprivate func fourBitBlocks() throws(ApusError) -> FourBitBlocks? {
    let k = try attributes.int("K")
    let n = try attributes.int("N")
    let size = try attributes.int("block_size")
    guard try attributes.int("bits", 4) == 4, k > 0, n > 0, size > 0, size.isMultiple(of: 8),
      optional(4) == nil, try tensorType(0).dataType == .float32,
      let bytes = constant(optional(1)), bytes.dataType == .uint8,
      let scales = constant(optional(2)), scales.dataType == .float32
    else { return nil }
    let zeros = constant(optional(3))
    guard optional(3) == nil || zeros?.dataType == .uint8 else { return nil }
    return try FourBitBlocks(n: n, k: k, size: size, bytes, scales, zeros)
  }

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
