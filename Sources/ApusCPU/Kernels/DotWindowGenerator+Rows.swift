// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusX86

/// How elements of several window rows come to lie side by side in lanes.
extension DotWindowGenerator {
  /// For bytes one order, of two rows of 32 channels each, with which unpacking words then gives channels in their order;
  /// for BF16 those of the first and the second half of two rows of 32 channels.
  func loadOrders() {
    for (half, register) in orders.enumerated() {
      let words: [UInt32]
      if shape.kind == .bfloat16 {
        words = (0..<16).map { ($0 + UInt32(16 * half)) * 0x0001_0001 + 0x0020_0000 }
      } else {
        // Two channels in each word of the order: those of a lane of 128 bits are four, and the four 16 further on.
        words = (0..<16).map { index in
          let channel = UInt32(index / 4 * 4 + index % 4 / 2 * 16 + index % 2 * 2)
          return (channel * 0x0101 + 0x4000) + (channel * 0x0101 + 0x4101) << 16
        }
      }
      a.vmovups(register, a.constant(words: words))
    }
  }

  /// Puts the elements of the rows of a group side by side: a register for each vector of channels.
  func gather(_ offset: Int, _ group: Int, _ vectors: Int, _ spare: inout [Vec], masked: Bool) -> [Vec] {
    let most = shape.kind.interleave
    let places = rows[group * most..<min(rows.count, group * most + most)].map { Address($0, offset) }
    func next() -> Vec {
      spare.append(spare.removeFirst())
      return spare[spare.count - 1]
    }
    if !shape.permutes || masked || places.count == 1 {
      return (0..<vectors).map { vector in
        let data = next()
        shift(places.map { $0.offset(vector * lanes * elementBytes) }, into: data, spare[0], masked: masked)
        return data
      }
    }
    let (first, second, third) = (next(), next(), next())
    if shape.kind == .bfloat16 {
      let width: VectorWidth = vectors == 2 ? .zmm : .ymm
      a.vmovups(first.at(width), places[0])
      a.vmovups(second.at(width), places[1])
      if vectors == 2 { a.vmovups(third, first) }
      a.vpermt2w(first, orders[0], second)
      if vectors == 2 { a.vpermt2w(third, orders[1], second) }
      return [first, third]
    }
    let width: VectorWidth = vectors == 2 ? .ymm : .xmm
    pair(places[0], places[1], width, into: first, third)
    if places.count > 2 {
      pair(places[2], places.count > 3 ? places[3] : nil, width, into: second, third)
    } else {
      a.vxorps(second, second, second)
    }
    a.vpunpcklwd(third, first, second)
    if vectors == 2 { a.vpunpckhwd(first, first, second) }
    return [third, first]
  }

  /// The bytes of two rows of channels, or of one beside zeros, in an order for unpacking words.
  private func pair(_ place: Address, _ other: Address?, _ width: VectorWidth, into target: Vec, _ scratch: Vec) {
    a.vmovups(target.at(width), place)
    if let other { a.vmovups(scratch.at(width), other) } else { a.vxorps(scratch, scratch, scratch) }
    a.vpermt2b(target, orders[0], scratch)
  }

  /// The same for one vector of channels, by shifting each row to its place.
  private func shift(_ places: [Address], into data: Vec, _ scratch: Vec, masked: Bool) {
    for (index, place) in places.enumerated() {
      let lane = index == 0 ? data : scratch
      if shape.kind == .bfloat16 {
        a.vpmovzxwd(lane, place, mask: masked ? Mask(7) : nil)
      } else {
        a.loadElements(lane, place, .uint8, masked ? tail : nil)
      }
      if index > 0 {
        a.vpslld(lane, lane, UInt8(8 * shape.kind.elementBytes * index))
        a.vorps(data, data, lane)
      }
    }
  }
}
