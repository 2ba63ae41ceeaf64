// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCPU
import Testing

/// Which tiles one call computes.
@Suite struct TileStepTests {
  private func steps(_ tiles: [TiledMultiply.Tile]) -> [TileStep] { TileStep.all(tiles, ldc: 8, ldo: 10) }

  @Test func tilesOfOnePatternAreOneRun() {
    let sizes = TiledMultiply.split(13, rows: 3)
    #expect(sizes == [3, 3, 3, 2, 2])
    var row = 0
    let tiles = sizes.map { size in
      defer { row += size }
      return TiledMultiply.Tile(offsetInA: row * 4, row: row, pattern: size == 3 ? 0 : 1)
    }
    let steps = steps(tiles)
    #expect(steps.map(\.tiles) == [3, 2, 1, 2, 1])
    #expect(steps[0].inA == 12 && steps[0].rows == 3 && steps[0].inC == 24 && steps[0].inOperands == 30)
    #expect(steps[3].inA == 8 && steps[3].rows == 2)
  }

  /// As those of a window that moves along rows of an image with something around it.
  @Test func aLongerStepEndsARun() {
    let tiles = [0, 12, 40, 52, 64].enumerated().map {
      TiledMultiply.Tile(offsetInA: $1, row: 3 * $0, pattern: 0)
    }
    #expect(steps(tiles).map(\.tiles) == [2, 2, 3, 2, 1])
  }

  @Test func placesInCAreFollowed() {
    let tiles = [0, 100, 200, 320].enumerated().map {
      TiledMultiply.Tile(offsetInA: 12 * $0, row: 3 * $0, pattern: 0, placeInC: $1)
    }
    let steps = steps(tiles)
    #expect(steps.map(\.tiles) == [3, 2, 2, 1])
    #expect(steps[0].inC == 100 && steps[0].inOperands == 100 && steps[2].inC == 120)
  }
}
