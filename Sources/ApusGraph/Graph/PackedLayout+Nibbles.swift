// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// Numbers of four bits, two to a byte: the dense tensor row-major, the lower half of a byte first; in
/// panels eight rows of a column side by side in a word of 32 bits, the first row in the lowest bits.
extension PackedLayout {
  /// Whether tensors of four-bit numbers can have this order.
  var takesNibbles: Bool { interleave == 8 && winograd == 0 && batch == 1 && segment == rows }

  /// Packs a dense tensor, whose count has been checked.
  func packNibbles(_ tensor: Tensor) throws(ApusError) -> Tensor {
    let packed = try Tensor(tensor.dataType, shape: [elementCount])
    let (target, source) = (packed.mutableBytes, tensor.bytes)
    forEachNibble { dense, stored in Self.copy(source, dense, target, stored) }
    return packed
  }

  /// Unpacks into a dense tensor, whose count has been checked.
  func unpackNibbles(_ packed: Tensor, into tensor: Tensor) {
    let (target, source) = (tensor.mutableBytes, packed.bytes)
    forEachNibble { dense, stored in Self.copy(source, stored, target, dense) }
  }

  /// Calls `body(dense, stored)` with both numbers of every nibble.
  @inline(__always)
  private func forEachNibble(_ body: (Int, Int) -> Void) {
    for row in 0..<rows {
      for panel in 0..<panelCount {
        let start = panel * storedRows * width + row / 8 * width * 8 + row % 8
        let dense = row * columns + panel * width
        for lane in 0..<min(width, columns - panel * width) { body(dense + lane, start + lane * 8) }
      }
    }
  }

  /// Copies a nibble into cleared memory.
  @inline(__always)
  private static func copy(
    _ source: UnsafeRawBufferPointer, _ from: Int, _ target: UnsafeMutableRawBufferPointer, _ to: Int
  ) {
    let number = source[from / 2] >> (from % 2 == 0 ? 0 : 4) & 15
    target[to / 2] |= to % 2 == 0 ? number : number << 4
  }
}
