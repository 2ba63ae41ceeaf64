// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// How the weights of a row, those that make one channel of a product's result, are rounded together: in
/// blocks, one after the other.
public struct RowRounding: Sendable {
  /// A block of neighbouring weights.
  struct Block: Sendable {
    let first: Int
    let rounding: SequentialRounding
  }

  /// The blocks of a row, for the rows of each group.
  let blocks: [[Block]]
  /// The weights of a row.
  let columnCount: Int

  init(blocks: [[Block]], columnCount: Int) {
    self.blocks = blocks
    self.columnCount = columnCount
  }

  /// Every window of a convolution in the same way.
  public init?(_ rounding: SequentialRounding, columnCount: Int) {
    guard columnCount > 0, columnCount % rounding.count == 0 else { return nil }
    self.columnCount = columnCount
    blocks = [
      stride(from: 0, to: columnCount, by: rounding.count).map { Block(first: $0, rounding: rounding) }
    ]
  }

  /// Rounds a row, in steps of its scale, to whole steps from -127 to 127.
  func round(_ steps: inout [Float], group: Int) {
    round(&steps, group: group) { max(-127, min(127, $0.rounded(.toNearestOrEven))) }
  }

  /// Rounds a row to numbers that a type has.
  @inline(__always)
  func round(_ row: inout [Float], group: Int, to nearest: (Float) -> Float) {
    row.withUnsafeMutableBufferPointer { buffer in
      guard let row = buffer.baseAddress else { return }
      for block in blocks[group] { block.rounding.round(row + block.first, to: nearest) }
    }
  }
}
