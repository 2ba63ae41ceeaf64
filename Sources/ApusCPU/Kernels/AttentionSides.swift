// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// What attention computes, and where its operands lie.
package struct AttentionShape: Hashable, Sendable {
  /// Elements from one batch member, head and place to the next; those of a head are side by side.
  package struct Strides: Hashable, Sendable {
    package var batch: Int
    package var head: Int
    package var place: Int

    /// Names the strides.
    package init(batch: Int, head: Int, place: Int) {
      self.batch = batch
      self.head = head
      self.place = place
    }

    func offset(_ batch: Int, _ head: Int, _ place: Int) -> Int {
      batch * self.batch + head * self.head + place * self.place
    }
  }

  package var batch: Int
  /// Heads of queries, and of keys and values, which groups of query heads share.
  package var heads: Int
  package var keyHeads: Int
  package var queries: Int
  package var keys: Int
  /// Elements of a query and of a key, and of a value.
  package var width: Int
  package var valueWidth: Int
  package var scale: Double
  /// Whether a query sees the keys up to its own place only.
  package var isCausal = false
  /// Whether rows that see no key are NaN instead of zero.
  package var keepsNaN = false
  package var query: Strides
  package var key: Strides
  package var value: Strides
  package var result: Strides
  /// Of single-precision numbers, one for each key; zero where heads, places or members share them.
  package var mask: Strides?
  /// How products are computed: in single precision or of BF16 numbers.
  package var kind: ProductKind = .float32
  package var resultType: DataType = .float32

  /// Names the sizes and where everything lies; a mask and other types are set behind it.
  package init(
    batch: Int, heads: Int, keyHeads: Int, queries: Int, keys: Int, width: Int, valueWidth: Int,
    scale: Double, query: Strides, key: Strides, value: Strides, result: Strides
  ) {
    (self.batch, self.heads, self.keyHeads) = (batch, heads, keyHeads)
    (self.queries, self.keys) = (queries, keys)
    (self.width, self.valueWidth, self.scale) = (width, valueWidth, scale)
    (self.query, self.key, self.value, self.result) = (query, key, value, result)
  }

  /// Why there is no kernel for it; nil when there is.
  func refusal(_ isa: ISA) -> String? {
    guard isa != .portable else { return "generated code needs AVX2" }
    guard min(batch, heads, keyHeads, queries, keys) > 0, min(width, valueWidth) > 0,
      heads % keyHeads == 0
    else { return "operands are empty, or heads cannot be shared out" }
    guard kind == .float32 || kind == .bfloat16 && isa == .avx512 && CPUFeatures.host.avx512BF16
    else { return "neither of single precision nor of BF16 numbers" }
    guard kind == .float32 || width % 2 == 0 && key.place % 2 == 0 else {
      return "BF16 keys that end inside a word"
    }
    guard width <= 1024, valueWidth <= 1024 else { return "heads of more than 1024 elements" }
    guard ElementAccess.supports(resultType, isa), resultType.isFloat else {
      return "results of \(resultType)"
    }
    let strides = [query, key, value, result].map(\.place).max() ?? 0
    guard strides < 1 << 26 else { return "places that are too far apart" }
    return nil
  }
}

/// Keys and values of one head in the order that the products read: keys exchanged with their elements,
/// in panels; values of each block of keys in panels of their own.
struct AttentionSides: Sendable {
  /// Bytes of one head.
  let byteCount: Int
  private let shape: AttentionShape
  private let blockKeys: Int
  private let keyPack: TransposedPack
  private let valuePanel: Int
  /// Bytes of the keys, of a key in them, and of a word of values.
  private let keyBytes: Int
  private let bytesPerKey: Int
  private let bytesPerValueWord: Int
  /// For narrow values: of a full block of keys and of the last one.
  private let pairing: [RightSideKernel]

  init(_ shape: AttentionShape, keys: Int, keyPanel: Int, valuePanel: Int, isa: ISA)
    throws(ApusError)
  {
    func whole(_ count: Int, _ size: Int) -> Int { (count + size - 1) / size * size }
    let interleave = shape.kind.interleave
    let words = shape.width / interleave
    self.shape = shape
    self.valuePanel = valuePanel
    blockKeys = keys
    keyPack = try TransposedPack(
      k: words, n: shape.keys, nr: keyPanel, stride: shape.key.place / interleave, isa: isa)
    bytesPerKey = words * 4
    keyBytes = whole(shape.keys, keyPanel) * bytesPerKey
    bytesPerValueWord = whole(shape.valueWidth, valuePanel) * 4
    let fullBlocks = (shape.keys - 1) / keys
    let depths = [keys, shape.keys - fullBlocks * keys]
    let valueWords = fullBlocks * Self.depth(depths[0], shape.kind) + Self.depth(depths[1], shape.kind)
    byteCount = whole(keyBytes + valueWords / interleave * bytesPerValueWord, 64)
    var pairing: [RightSideKernel] = []
    if interleave > 1 {
      for depth in depths {
        pairing.append(
          try RightSideKernel(
            RightSideKernel.Shape(
              k: depth, elementBytes: 4 / interleave,
              rowBytes: shape.value.place * (4 / interleave), panelBytes: valuePanel * 4)))
      }
    }
    self.pairing = pairing
  }

  /// Keys of a block filled up to whole words.
  static func depth(_ keys: Int, _ kind: ProductKind) -> Int {
    (keys + kind.interleave - 1) / kind.interleave * kind.interleave
  }

  /// Bytes before key `key`, the first of a block.
  func keyOffset(_ key: Int) -> Int { key * bytesPerKey }

  /// Bytes before the values of the block that begins with `key`.
  func valueOffset(_ key: Int) -> Int {
    keyBytes + key / blockKeys * (Self.depth(blockKeys, shape.kind) / shape.kind.interleave)
      * bytesPerValueWord
  }

  /// Brings one head's keys and values into order.
  func prepare(keys: UnsafeRawPointer, values: UnsafeRawPointer, into packed: UnsafeMutableRawPointer) {
    keyPack.run(keys, into: packed)
    for first in stride(from: 0, to: shape.keys, by: blockKeys) {
      let count = min(blockKeys, shape.keys - first)
      let source = values + first * shape.value.place * shape.kind.elementBytes
      let target = packed + valueOffset(first)
      if pairing.isEmpty {
        PackedMatrix.pack(
          source.assumingMemoryBound(to: Float.self), rowStride: shape.value.place, k: count,
          n: shape.valueWidth, nr: valuePanel, into: target.assumingMemoryBound(to: Float.self))
      } else {
        pair(source, pairing[count == blockKeys ? 0 : 1], words: Self.depth(count, shape.kind) / 2, target)
      }
    }
  }

  /// Puts pairs of values side by side, a vector of columns at a time.
  private func pair(
    _ source: UnsafeRawPointer, _ kernel: RightSideKernel, words: Int, _ target: UnsafeMutableRawPointer
  ) {
    for column in stride(from: 0, to: shape.valueWidth, by: 16) {
      let (panel, place) = column.quotientAndRemainder(dividingBy: valuePanel)
      kernel.run(
        source: Int(bitPattern: source) + column * 2,
        panel: Int(bitPattern: target) + (panel * words * valuePanel + place) * 4, terms: 0,
        columns: min(16, shape.valueWidth - column))
    }
  }
}
