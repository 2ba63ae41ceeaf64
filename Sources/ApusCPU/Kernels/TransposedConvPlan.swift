// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// A channels-last transposed convolution as ordinary convolutions, one for each phase of the stride, that
/// store their results `stride` pixels apart: nothing is computed that is zero by construction, and
/// nothing is moved afterwards. Phases with as many taps and results differ only in where they read and
/// write, so they are one batch of products.
package final class TransposedConvPlan: Sendable {
  /// The panel width of the packed weights.
  package let nr: Int
  /// Scratch memory a run needs: the padded input, if any.
  package let workspaceByteCount: Int
  private let shape: TransposedConvShape
  private let products: [TiledMultiply]
  private let copy: ElementCopy
  /// Bytes of a pixel as it is multiplied, and of one of the input.
  private let pixelBytes: Int
  private let inputBytes: Int
  /// The positions that are read of each axis; empty when the input is used as it lies.
  private let sources: [Range<Int>]

  /// Plans a transposed convolution whose weights are those of `PhasedConvTranspose`, packed as
  /// `phases * groups` matrices of `taps * inChannels / groups` rows.
  ///
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    _ shape: TransposedConvShape, tile: GemmTile, isa: ISA = .current,
    epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes()
  ) throws(ApusError) {
    guard isa != .portable, shape.isValid,
      shape.inChannels / shape.groups % types.kind.interleave == 0
    else {
      throw ApusError(.notYetSupported, "this transposed convolution has no generated kernel")
    }
    self.shape = shape
    nr = tile.columns(isa)
    copy = ElementCopy(types.kind)
    pixelBytes = shape.inChannels * types.kind.elementBytes
    inputBytes = shape.inChannels * types.kind.storedBytes
    let read = (0..<3).map(shape.sources)
    let isInside = !copy.widens && (0..<3).allSatisfy {
      read[$0].lowerBound >= 0 && read[$0].upperBound <= shape.input[$0]
    }
    sources = isInside ? [] : read
    let sizes = isInside ? shape.input : read.map(\.count)
    workspaceByteCount = isInside ? 0 : shape.batch * sizes.reduce(1, *) * pixelBytes
    let layout = Layout(
      shape: shape, tile: tile, isa: isa, sizes: sizes,
      origin: isInside ? [0, 0, 0] : read.map(\.lowerBound), types: types)
    let axes = (0..<3).map(shape.phases)
    var classes: [[Int]: [[TransposedConvShape.AxisPhase]]] = [:]
    for z in axes[0] {
      for y in axes[1] {
        for x in axes[2] {
          classes[[z.taps, y.taps, x.taps, z.count, y.count, x.count], default: []].append([
            z, y, x,
          ])
        }
      }
    }
    // Most taps first: what takes longest is shared out first.
    products = try classes.sorted { $0.key.lexicographicallyPrecedes($1.key) }.reversed().map {
      (_, phases) throws(ApusError) in
      try layout.product(phases, epilogue: epilogue, operands: operands)
    }
  }

  /// Convolves. `operands` holds the addresses of the epilogue's extra operands; `workspace` has
  /// `workspaceByteCount` bytes.
  package func run(
    input: UnsafeRawPointer, packedWeights: UnsafeRawPointer, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, workspace: UnsafeMutableRawPointer,
    pool: ThreadPool
  ) {
    var source = input
    if workspaceByteCount > 0 {
      pad(input, into: workspace, pool)
      source = UnsafeRawPointer(workspace)
    }
    for product in products {
      product.run(a: source, b: packedWeights, c: output, operands: operands, pool: pool)
    }
  }

  /// Copies the input with zeros around it, as far as it is read.
  private func pad(
    _ input: UnsafeRawPointer, into padded: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) {
    let rows = shape.batch * sources[0].count * sources[1].count
    let perTask = max(1, 65536 / (sources[2].count * pixelBytes))
    pool.parallelFor((rows + perTask - 1) / perTask, (self, input, padded, rows, perTask)) {
      context, task in
      let (plan, input, padded, rows, perTask) = context
      for row in task * perTask..<min(rows, (task + 1) * perTask) {
        plan.padRow(row, input, padded)
      }
    }
  }

  private func padRow(_ row: Int, _ input: UnsafeRawPointer, _ padded: UnsafeMutableRawPointer) {
    let target = padded + row * sources[2].count * pixelBytes
    let (plane, line) = row.quotientAndRemainder(dividingBy: sources[1].count)
    let (image, depth) = plane.quotientAndRemainder(dividingBy: sources[0].count)
    let z = depth + sources[0].lowerBound
    let y = line + sources[1].lowerBound
    let inside = sources[2].clamped(to: 0..<shape.input[2])
    guard z >= 0, z < shape.input[0], y >= 0, y < shape.input[1], !inside.isEmpty else {
      return copy.fill(target, byteCount: sources[2].count * pixelBytes, with: 0)
    }
    let left = (inside.lowerBound - sources[2].lowerBound) * pixelBytes
    let right = (sources[2].upperBound - inside.upperBound) * pixelBytes
    copy.fill(target, byteCount: left, with: 0)
    let pixel =
      ((image * shape.input[0] + z) * shape.input[1] + y) * shape.input[2] + inside.lowerBound
    copy.copy(input + pixel * inputBytes, to: target + left, byteCount: inside.count * inputBytes)
    copy.fill(target + left + inside.count * pixelBytes, byteCount: right, with: 0)
  }
}

/// Makes the tables of the products of phases.
private struct Layout {
  let shape: TransposedConvShape
  let tile: GemmTile
  let isa: ISA
  /// The sizes of the input that is read, and the position it starts at.
  let sizes: [Int]
  let origin: [Int]
  let types: ProductTypes

  private var groupInputs: Int { shape.inChannels / shape.groups }
  private var groupOutputs: Int { shape.outChannels / shape.groups }
  private var pixelBytes: Int { shape.inChannels * types.kind.elementBytes }

  /// The index of a position in a row-major box.
  private func place(_ position: [Int], in sizes: [Int]) -> Int {
    (position[0] * sizes[1] + position[1]) * sizes[2] + position[2]
  }

  /// The product of phases that have the same numbers of taps and results along each axis.
  func product(
    _ phases: [[TransposedConvShape.AxisPhase]], epilogue: ScalarExpr, operands: [EpilogueOperand]
  ) throws(ApusError) -> TiledMultiply {
    let taps = phases[0].map(\.taps)
    let (tiles, patterns, patternsOfC) = tiles(phases[0].map(\.count))
    // Taps of a row lie side by side where neighbours of the input are neighbours in memory.
    let joins =
      shape.dilations[2] == 1 && shape.groups == 1 && taps[2] * shape.inChannels <= 2048
    let memberTaps = joins ? taps[2] : 1
    let memberK = memberTaps * groupInputs / types.kind.interleave
    var offsets: [Int] = []
    for z in 0..<taps[0] {
      for y in 0..<taps[1] {
        for x in stride(from: 0, to: taps[2], by: memberTaps) {
          let position = zip([z, y, x], shape.dilations).map { $0 * $1 }
          offsets.append(place(position, in: sizes) * pixelBytes)
        }
      }
    }
    let isWhole = tiles.count == 1 || types.result != types.kind.sumType
    let perBlock = isWhole ? offsets.count : max(1, 768 / memberK)
    var blocks: [TiledMultiply.KBlock] = []
    var first = 0
    for count in TiledMultiply.split(offsets.count, rows: perBlock) {
      blocks.append(
        TiledMultiply.KBlock(first: first, count: count, k: memberK, start: first * memberK))
      first += count
    }
    // Weights of phases with fewer taps have zeros behind them, which are not read.
    let words = shape.taps * groupInputs / types.kind.interleave
    let groupBytes =
      PackedMatrix.byteCount(k: words, n: groupOutputs, nr: tile.columns(isa)) / 4
      * types.kind.columnBytes
    var groups: [TiledMultiply.Group] = []
    for phase in phases {
      let source = place(zip(phase, origin).map { $0.source - $1 }, in: sizes) * pixelBytes
      let target = place(phase.map(\.first), in: shape.output) * shape.outChannels
      let matrix = place(phase.map(\.phase), in: shape.strides) * shape.groups
      for group in 0..<shape.groups {
        groups.append(
          TiledMultiply.Group(
            a: source + group * groupInputs * types.kind.elementBytes,
            b: (matrix + group) * groupBytes, c: target + group * groupOutputs,
            column: group * groupOutputs))
      }
    }
    return try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, patternsOfC: patternsOfC, offsets: offsets,
        blocks: blocks, k: words, n: groupOutputs, vectors: tile.vectors, ldb: nil,
        ldc: shape.strides[2] * shape.outChannels, ldo: shape.strides[2] * shape.outChannels,
        epilogue: epilogue, operands: operands,
        types: types.filled(operands.count), groups: groups, groupsShareRows: true))
  }

  /// The register tiles of a phase with `counts` results: pieces of a row of results, or several rows
  /// where they are short.
  private func tiles(_ counts: [Int]) -> ([TiledMultiply.Tile], rows: [[Int]], rowsOfC: [[Int]]) {
    var tiles: [TiledMultiply.Tile] = []
    var known: [[Int]: Int] = [:]
    var patterns: [[Int]] = []
    var patternsOfC: [[Int]] = []
    let pieces = TiledMultiply.split(counts[2], rows: tile.rows)
    let heights = TiledMultiply.split(counts[1], rows: max(1, tile.rows / counts[2]))
    func source(_ position: [Int]) -> Int { place(position, in: sizes) * pixelBytes }
    func target(_ position: [Int]) -> Int {
      place(zip(position, shape.strides).map { $0 * $1 }, in: shape.output) * shape.outChannels
    }
    for image in 0..<shape.batch {
      for z in 0..<counts[0] {
        var y = 0
        for height in heights {
          var x = 0
          for piece in pieces {
            let index = known[[height, piece]] ?? patterns.count
            if index == patterns.count {
              known[[height, piece]] = index
              let positions = (0..<height * piece).map { [0, $0 / piece, $0 % piece] }
              patterns.append(positions.map(source))
              patternsOfC.append(positions.map(target))
            }
            tiles.append(
              TiledMultiply.Tile(
                offsetInA: image * sizes.reduce(pixelBytes, *) + source([z, y, x]), row: 0,
                pattern: index,
                placeInC: image * shape.output.reduce(shape.outChannels, *) + target([z, y, x])))
            x += piece
          }
          y += height
        }
      }
    }
    return (tiles, patterns, patternsOfC)
  }
}
