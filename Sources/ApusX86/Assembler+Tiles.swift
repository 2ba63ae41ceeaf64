// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A tile register of AMX: up to 16 rows of 64 bytes, as the loaded configuration says.
package struct Tile: Hashable, Sendable {
  /// The hardware number, 0 to 7.
  package let number: UInt8

  /// The register `tmm<number>`.
  package init(_ number: Int) { self.number = UInt8(truncatingIfNeeded: number) & 7 }
}

/// AMX: products of whole tiles. No kernel uses them yet. A process must ask the system before the first
/// of these instructions (`apus_request_tiles`).
extension Assembler {
  // MARK: Configuration

  private func tiles(
    _ prefix: VectorRow.Prefix, _ opcode: UInt8, reg: UInt8, second: UInt8 = 0,
    _ operand: EncodedOperand
  ) {
    vector(
      VectorRow(prefix, .m0F38, opcode, .full, .vex), .xmm, reg: reg, second: second, operand)
  }

  /// Loads 64 bytes that say how many rows and bytes each tile has.
  package func ldtilecfg(_ from: Address) { tiles(.none, 0x49, reg: 0, from.encoded) }
  /// Stores the configuration.
  package func sttilecfg(_ to: Address) { tiles(.x66, 0x49, reg: 0, to.encoded) }
  /// Returns to the state without tiles; threads that are done with them must.
  package func tilerelease() { tiles(.none, 0x49, reg: 0, .register(0)) }
  /// Clears a tile.
  package func tilezero(_ tile: Tile) { tiles(.xF2, 0x49, reg: tile.number, .register(0)) }

  // MARK: Moves

  /// Rows lie `index * scale` bytes apart: an address of tiles has an index.
  private func move(_ prefix: VectorRow.Prefix, _ tile: Tile, _ rows: Address) {
    if rows.index == nil { fail("rows of a tile need an index register with their distance") }
    tiles(prefix, 0x4B, reg: tile.number, rows.encoded)
  }
  /// Loads a tile, its rows as far apart as the index of the address says.
  package func tileloadd(_ to: Tile, _ from: Address) { move(.xF2, to, from) }
  /// Stores a tile.
  package func tilestored(_ to: Address, _ from: Tile) { move(.xF3, from, to) }

  // MARK: Products

  private func product(
    _ prefix: VectorRow.Prefix, _ opcode: UInt8, _ sum: Tile, _ a: Tile, _ b: Tile
  ) {
    // The hardware faults on equal operands.
    if sum == a || sum == b || a == b { fail("a product of tiles needs three different ones") }
    tiles(prefix, opcode, reg: sum.number, second: b.number, .register(a.number))
  }
  /// Signed bytes times signed bytes, four products added to each 32-bit element of `sum`. `b` holds the
  /// four bytes that a row of `a` meets side by side.
  package func tdpbssd(_ sum: Tile, _ a: Tile, _ b: Tile) { product(.xF2, 0x5E, sum, a, b) }
  /// Signed bytes times unsigned ones.
  package func tdpbsud(_ sum: Tile, _ a: Tile, _ b: Tile) { product(.xF3, 0x5E, sum, a, b) }
  /// Unsigned bytes times signed ones.
  package func tdpbusd(_ sum: Tile, _ a: Tile, _ b: Tile) { product(.x66, 0x5E, sum, a, b) }
  /// Unsigned bytes times unsigned ones.
  package func tdpbuud(_ sum: Tile, _ a: Tile, _ b: Tile) { product(.none, 0x5E, sum, a, b) }
  /// Pairs of BF16 products added to each single-precision element of `sum`.
  package func tdpbf16ps(_ sum: Tile, _ a: Tile, _ b: Tile) { product(.xF3, 0x5C, sum, a, b) }
}
