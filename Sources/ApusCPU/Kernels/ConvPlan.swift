// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// A channels-last convolution as a batch of matrix products: for each place in the window, pixels
/// times channels. Pixels lie where they are (the input is copied once if it needs zeros around it),
/// and the places of one window row are contiguous, so they are one product.
package final class ConvPlan: Sendable {
  /// The register tile.
  package let tile: GemmTile
  /// The panel width of the packed weights.
  package let nr: Int
  /// Scratch memory a run needs: the padded input, if any.
  package let workspaceByteCount: Int
  /// The size of the packed weights.
  package let packedWeightByteCount: Int
  private let shape: ConvShape
  private let multiply: TiledMultiply
  private let copy: ElementCopy
  /// Bytes of a pixel as it is multiplied.
  private let pixelBytes: Int
  /// Those of a pixel of the input, and from one of them to the next.
  private let inputBytes: Int
  private let inputStep: Int
  /// What stands around the input, in every byte.
  private let padValue: Int
  /// Tiles of an output row, where rows are computed one by one.
  private let tilesPerRow: Int

  /// Plans a convolution.
  ///
  /// - Parameters:
  ///   - inputPitch: Elements from one pixel of the input to the next, if there are gaps between them.
  ///   - resultPitch: The same for the result.
  ///   - rowByRow: Whether no tile covers pixels of two output rows, so that some rows can be computed alone.
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    _ shape: ConvShape, tile: GemmTile? = nil, isa: ISA = .current,
    epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes(), padValue: Int = 0, inputPitch: Int? = nil,
    resultPitch: Int? = nil, rowByRow: Bool = false
  ) throws(ApusError) {
    let elementBytes = types.kind.elementBytes
    let interleave = types.kind.interleave
    let memberElements = Self.memberElements(shape)
    guard isa != .portable, shape.isValid, memberElements % interleave == 0 || types.kind.isOfBytes
    else {
      throw ApusError(.notYetSupported, "this convolution has no generated kernel")
    }
    self.shape = shape
    self.padValue = padValue
    copy = ElementCopy(types.kind)
    pixelBytes = shape.inChannels * elementBytes
    inputBytes = shape.inChannels * types.kind.storedBytes
    inputStep = (inputPitch ?? shape.inChannels) * types.kind.storedBytes
    // Kernels read whole words; what they read too much is multiplied by zero, but must exist. Pixels of one
    // window row must lie side by side.
    let padded =
      shape.needsPadding || memberElements % interleave != 0 || copy.widens
      || (inputPitch != nil && shape.kernelWidth > 1)
    let width = padded ? shape.paddedWidth : shape.inWidth
    let height = padded ? shape.paddedHeight : shape.inHeight
    let pixel = padded ? pixelBytes : inputStep
    let groupInputs = shape.inChannels / shape.groups
    let groupOutputs = shape.outChannels / shape.groups
    // A window of one pixel that moves by one reads the pixels in order: one run of all of them.
    let linear =
      !rowByRow && shape.kernelHeight == 1 && shape.kernelWidth == 1 && shape.strideHeight == 1
      && shape.strideWidth == 1 && (!padded || copy.widens) && shape.outHeight == height
      && shape.outWidth == width
    let run = linear ? shape.batch * height * width : shape.outWidth
    let stride = shape.strideWidth * pixel / 4
    let tile = tile ?? GemmTile.choose(run: run, n: groupOutputs, stride: stride, isa: isa, kind: types.kind)
    self.tile = tile
    nr = tile.columns(isa)

    // Tiles: rows of C are output pixels.
    var tiles: [TiledMultiply.Tile] = []
    var patterns: [[Int]] = []
    var known: [[Int]: Int] = [:]
    /// Adds a tile of `rows` output rows by `piece` pixels.
    func add(rows: Int, piece: Int, offset: Int, row: Int) {
      let index = known[[rows, piece]] ?? patterns.count
      if index == patterns.count {
        known[[rows, piece]] = index
        patterns.append(
          (0..<rows * piece).map { position in
            let (y, x) = (position / piece, position % piece)
            return (y * shape.strideHeight * width + x * shape.strideWidth) * pixel
          })
      }
      tiles.append(TiledMultiply.Tile(offsetInA: offset, row: row, pattern: index))
    }
    if linear {
      var row = 0
      for size in TiledMultiply.split(run, rows: tile.rows) {
        add(rows: 1, piece: size, offset: row * pixel, row: row)
        row += size
      }
    } else {
      // Several whole output rows where they are short, pieces of one where they are long.
      let rowsPerTile = rowByRow ? 1 : max(1, tile.rows / shape.outWidth)
      let pieces = TiledMultiply.split(shape.outWidth, rows: tile.rows)
      for image in 0..<shape.batch {
        var y = 0
        for rows in TiledMultiply.split(shape.outHeight, rows: rowsPerTile) {
          var x = 0
          for piece in pieces {
            add(
              rows: rows, piece: piece,
              offset: ((image * height + y * shape.strideHeight) * width + x * shape.strideWidth)
                * pixel,
              row: (image * shape.outHeight + y) * shape.outWidth + x)
            x += piece
          }
          y += rows
        }
      }
    }

    tilesPerRow = TiledMultiply.split(shape.outWidth, rows: tile.rows).count

    // The batch: window rows, or single places where their channels do not lie side by side or a row
    // of them is too long to stay in cache.
    let wholeRows = memberElements != groupInputs || shape.kernelWidth == 1
    let memberK = (memberElements + interleave - 1) / interleave
    var members: [Int] = []
    for y in 0..<shape.kernelHeight {
      for x in 0..<(wholeRows ? 1 : shape.kernelWidth) {
        members.append((y * shape.dilationHeight * width + x * shape.dilationWidth) * pixel)
      }
    }
    let k = memberK * members.count
    let isWhole = tiles.count == 1 || types.result != types.kind.sumType
    let (offsets, blocks) = Self.blocks(
      members, words: memberK, usual: isWhole ? .max : TiledMultiply.wordsPerBlock(tile, isa), isa)
    let groupBytes =
      PackedMatrix.byteCount(k: k, n: groupOutputs, nr: tile.columns(isa)) / 4 * types.kind.columnBytes
    packedWeightByteCount = groupBytes * shape.groups
    workspaceByteCount = padded ? shape.batch * height * width * pixel + 4 : 0
    multiply = try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, offsets: offsets, blocks: blocks, k: k,
        n: groupOutputs, vectors: tile.vectors, ldb: nil,
        ldc: resultPitch ?? shape.outChannels, ldo: shape.outChannels, epilogue: epilogue, operands: operands, types: types.filled(operands.count),
        groups: (0..<shape.groups).map { group in
          TiledMultiply.Group(
            a: group * groupInputs * elementBytes, b: group * groupBytes, c: group * groupOutputs,
            column: group * groupOutputs)
        }, sumsTogether: tile.sumsTogether))
  }

  /// Cuts the batch into what is summed before others are read, of about `usual` words: some members together, or with
  /// short vectors parts of a long one.
  ///
  /// - Returns: Where the members or their parts start in A, and the blocks.
  private static func blocks(_ members: [Int], words: Int, usual: Int, _ isa: ISA) -> (
    offsets: [Int], blocks: [TiledMultiply.KBlock]
  ) {
    var offsets: [Int] = []
    var blocks: [TiledMultiply.KBlock] = []
    if isa != .avx512, usual < .max, words > usual / 2 * 3 {
      for (number, member) in members.enumerated() {
        var start = 0
        for size in TiledMultiply.split(words, rows: usual) {
          blocks.append(
            TiledMultiply.KBlock(first: offsets.count, count: 1, k: size, start: number * words + start))
          offsets.append(member + 4 * start)
          start += size
        }
      }
      return (offsets, blocks)
    }
    let together = usual == .max ? members.count : max(1, usual / 2 * 3 / words)
    var first = 0
    for count in TiledMultiply.split(members.count, rows: together) {
      blocks.append(TiledMultiply.KBlock(first: first, count: count, k: words, start: first * words))
      first += count
    }
    return (members, blocks)
  }

  /// Elements of K that lie side by side in the input: a row of the window where that is possible and
  /// not too long, else the channels of one place.
  package static func memberElements(_ shape: ConvShape) -> Int {
    let inputs = shape.inChannels / max(1, shape.groups)
    let wholeRows =
      shape.dilationWidth == 1 && shape.groups == 1
      && (shape.kernelWidth * inputs <= 2048 || shape.kernelWidth == 1)
    return wholeRows ? shape.kernelWidth * inputs : inputs
  }

  /// Words of K in all.
  package static func words(_ shape: ConvShape, _ kind: ProductKind) -> Int {
    let member = memberElements(shape)
    let members = shape.depth / max(1, member)
    return members * ((member + kind.interleave - 1) / kind.interleave)
  }

  /// Packs single-precision weights `[kernelHeight, kernelWidth, inChannels / groups, outChannels]`.
  package func packWeights(
    _ weights: UnsafePointer<Float>, into packed: UnsafeMutablePointer<Float>
  ) {
    let outputs = shape.outChannels / shape.groups
    let k = shape.kernelHeight * shape.kernelWidth * (shape.inChannels / shape.groups)
    for group in 0..<shape.groups {
      PackedMatrix.pack(
        weights + group * outputs, rowStride: shape.outChannels, k: k, n: outputs, nr: nr,
        into: packed + group * (packedWeightByteCount / 4 / shape.groups))
    }
  }

  /// Convolves. `operands` holds the addresses of the epilogue's extra operands; `workspace` has
  /// `workspaceByteCount` bytes.
  package func run(
    input: UnsafeRawPointer, packedWeights: UnsafeRawPointer, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, workspace: UnsafeMutableRawPointer,
    pool: ThreadPool
  ) {
    let source = prepared(input, workspace: workspace, pool)
    multiply.run(a: source, b: packedWeights, c: output, operands: operands, pool: pool)
  }

  /// The input as windows read it: copied into the workspace with what stands around it, if it must be.
  func prepared(_ input: UnsafeRawPointer, workspace: UnsafeMutableRawPointer, _ pool: ThreadPool)
    -> UnsafeRawPointer
  {
    if workspaceByteCount == 0 { return input }
    pad(input, into: workspace, pool)
    return UnsafeRawPointer(workspace)
  }

  /// Computes some rows of one image on the calling thread; the plan must be `rowByRow`. The input is a prepared one,
  /// and the output where it would begin if all its rows were there.
  func run(image: Int, rows: Range<Int>, _ addresses: WindowAddresses, operands: UnsafePointer<UnsafeRawPointer>) {
    let first = image * shape.outHeight
    multiply.run(
      tiles: (first + rows.lowerBound) * tilesPerRow..<(first + rows.upperBound) * tilesPerRow, firstRow: 0,
      a: addresses.input, b: addresses.weights, c: addresses.output, operands: operands)
  }

  /// Copies the input with what stands around it as far as the windows touch it.
  private func pad(
    _ input: UnsafeRawPointer, into padded: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) {
    let rowsPerTask = max(1, 65536 / (shape.paddedWidth * pixelBytes))
    let rows = shape.batch * shape.paddedHeight
    pool.parallelFor(
      (rows + rowsPerTask - 1) / rowsPerTask, (self, input, padded, rows, rowsPerTask)
    ) { context, task in
      let (plan, input, padded, rows, rowsPerTask) = context
      for row in task * rowsPerTask..<min(rows, (task + 1) * rowsPerTask) {
        plan.padRow(row, input, padded)
      }
    }
  }

  private func padRow(_ row: Int, _ input: UnsafeRawPointer, _ padded: UnsafeMutableRawPointer) {
    let rowBytes = shape.paddedWidth * pixelBytes
    let left = shape.padLeft * pixelBytes
    let pixels = max(0, min(shape.inWidth, shape.paddedWidth - shape.padLeft))
    let target = padded + row * rowBytes
    let image = row / shape.paddedHeight
    let y = row % shape.paddedHeight - shape.padTop
    guard y >= 0, y < shape.inHeight, pixels > 0 else {
      return copy.fill(target, byteCount: rowBytes, with: padValue)
    }
    copy.fill(target, byteCount: left, with: padValue)
    let source = input + (image * shape.inHeight + y) * shape.inWidth * inputStep
    if inputStep == inputBytes {
      copy.copy(source, to: target + left, byteCount: pixels * inputBytes)
    } else {
      for pixel in 0..<pixels {
        copy.copy(source + pixel * inputStep, to: target + left + pixel * pixelBytes, byteCount: inputBytes)
      }
    }
    let end = left + pixels * pixelBytes
    copy.fill(target + end, byteCount: rowBytes - end, with: padValue)
  }
}
