// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// How far it is from a tile to the next ones, as long as they are alike: one call computes all of them.
///
/// With short sums a tile is some hundred cycles; finding out where the next one lies and calling its code would be
/// a good part of that.
package struct TileStep: BitwiseCopyable {
  /// Tiles of the same pattern, this one included, each as far from the one before.
  package var tiles = 1
  /// In A, in bytes.
  package var inA = 0
  /// In rows of the result, and in C and in operands with an element for each of C's, in elements.
  package var rows = 0
  package var inC = 0
  package var inOperands = 0

  /// That of each tile, with rows of C and of operands so many elements apart.
  package static func all(_ tiles: [TiledMultiply.Tile], ldc: Int, ldo: Int) -> [TileStep] {
    var steps = tiles.map { _ in TileStep() }
    for index in tiles.indices.dropLast().reversed() {
      guard let step = TileStep(from: tiles[index], to: tiles[index + 1], ldc, ldo) else { continue }
      steps[index] = step
      let next = steps[index + 1]
      let goesOn = next.tiles == 1 || next.isAlike(step)
      steps[index].tiles = goesOn ? next.tiles + 1 : 2
    }
    return steps
  }

  private init?(from tile: TiledMultiply.Tile, to next: TiledMultiply.Tile, _ ldc: Int, _ ldo: Int) {
    guard tile.pattern == next.pattern, (tile.placeInC == nil) == (next.placeInC == nil) else { return nil }
    inA = next.offsetInA - tile.offsetInA
    rows = next.row - tile.row
    if let place = tile.placeInC, let other = next.placeInC {
      inC = other - place
      inOperands = inC
    } else {
      inC = rows * ldc
      inOperands = rows * ldo
    }
  }

  private init() {}

  private func isAlike(_ other: TileStep) -> Bool {
    inA == other.inA && rows == other.rows && inC == other.inC && inOperands == other.inOperands
  }
}
