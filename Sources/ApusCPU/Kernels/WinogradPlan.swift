// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A 3x3 convolution by Winograd's minimal filtering (Lavin and Gray, 2015): tiles of `m + 2` squared
/// pixels are transformed, multiplied with transformed weights as `(m + 2)^2` matrix products, and
/// transformed back. For `m` = 4 that is a quarter of the direct form's multiplications, for 2 a 2.25th.
///
/// Numbers of type `bfloat16` are multiplied as such for `m` = 2; the larger transform would enlarge
/// their rounding errors too much, so its matrices are in single precision.
///
/// Bytes become 16-bit integers without rounding; their weights are rounded (`ScaledWeights`), so the sums
/// are near those of the direct form, not equal. The error's root mean square is 0.04 % of the sums'
/// standard deviation for random operands (less than 0.1 % is tested). A layer's results spread over some
/// forty of 256 steps, so that is about a sixtieth of a step, where rounding to steps alone makes an error of
/// 0.29: about one result in two hundred falls to the other side of a tie, by one step.
///
/// The tiles are taken in blocks, so that what lies between the steps stays in cache. Bytes have large
/// weights for their small pixels, so the channels of results are taken in bands: that makes room for
/// blocks of more tiles, which read the weights less often.
package final class WinogradPlan: Sendable {
  /// The order of the weights.
  package let packing: PackedLayout
  /// Scratch memory a run needs: the transformed tiles and products of a block.
  package let workspaceByteCount: Int
  private let shape: ConvShape
  private let m: Int
  /// Bytes from one pixel of the input to the next.
  private let inputStep: Int
  /// Elements from one pixel of results to the next.
  private let resultPitch: Int
  private let tilesWide: Int
  private let tilesHigh: Int
  private let blocks: [Block]
  private let bands: [Band]
  /// The products of a block and a band: first those of all bands but the last, then those of the last.
  private let products: [TiledMultiply]
  private let inputs: [WinogradKernel]
  /// In the same way, four for each kind of band.
  private let outputs: [WinogradKernel]
  /// Which of `inputs` each column of tiles takes.
  private let inputOfColumn: [Int]
  private let inputBytes: Int
  private let inputRowBytes: Int
  private let inputPlaneBytes: Int
  private let outputPlaneBytes: Int
  private let resultBytes: Int
  /// Where the scales of integers lie in the weights.
  private let scaleOffset: Int?
  /// Where the sums of the weights lie behind them, if they are needed.
  private let sumOffset: Int?
  private let operandKinds: [EpilogueOperand]
  private let operandBytes: [Int]
  /// Rows outside the input.
  private let outside: FilledRow

  /// Tiles.
  private struct Block: Sendable {
    var first: Int
    var count: Int
    /// Which product multiplies them.
    var product: Int
  }

  /// Channels of results.
  private struct Band: Sendable {
    var first: Int
    var count: Int
    /// Bytes from the start of each matrix of weights to these columns.
    var weights: Int
    var isLast: Bool
  }

  /// How the transformed tiles of a product are multiplied.
  package static func products(_ kind: ProductKind, m: Int) -> ProductKind {
    if kind.isOfBytes { return .int16 }
    return m == 2 || kind == .float16Weights ? kind : .float32
  }

  /// How many products of integers are summed before the sum becomes a number of single precision.
  package static let exactRun = 64

  /// Sums of more channels may not fit 32 bits when they are put together.
  private static let mostChannelsOfBytes = 4096

  /// Whether a convolution has this form.
  package static func takes(_ shape: ConvShape, _ kind: ProductKind = .float32) -> Bool {
    shape.kernelHeight == 3 && shape.kernelWidth == 3 && shape.strideHeight == 1
      && shape.strideWidth == 1 && shape.dilationHeight == 1 && shape.dilationWidth == 1
      && shape.groups == 1 && shape.isValid && shape.inChannels >= 8 && shape.outChannels >= 8
      && (!kind.isOfBytes || shape.inChannels <= mostChannelsOfBytes)
  }

  /// Plans a convolution.
  ///
  /// - Parameters:
  ///   - m: Pixels of results along each side of a tile, 2 or 4.
  ///   - blockBytes: Memory for what lies between the steps; blocks are not smaller than a register
  ///     tile all the same.
  ///   - inputPitch: Elements from one pixel of the input to the next, if there are gaps between them.
  ///   - resultPitch: The same for the results.
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    _ shape: ConvShape, m: Int, tile: GemmTile, blockBytes: Int, isa: ISA = .current,
    epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes(), padValue: Int = 0, inputPitch: Int? = nil,
    resultPitch: Int? = nil
  ) throws(ApusError) {
    guard isa != .portable, Self.takes(shape, types.kind), m == 2 || m == 4,
      types.kind != .bfloat16 || shape.inChannels % 2 == 0,
      !types.kind.isOfBytes || m == 4
    else {
      throw ApusError(.notYetSupported, "this convolution has no Winograd form")
    }
    let types = types.filled(operands.count)
    let size = m + 2
    let places = size * size
    self.shape = shape
    let resultPitch = resultPitch ?? shape.outChannels
    self.resultPitch = resultPitch
    self.m = m
    tilesWide = (shape.outWidth + m - 1) / m
    tilesHigh = (shape.outHeight + m - 1) / m
    let tiles = shape.batch * tilesWide * tilesHigh
    let inputType = Self.inputType(types.kind)
    let product = Self.products(types.kind, m: m)
    let transformedType: DataType =
      switch product {
      case .bfloat16: .bfloat16
      case .int16: .int16
      default: .float32
      }
    inputBytes = ElementAccess.byteCount(inputType)
    let pixelBytes = (inputPitch ?? shape.inChannels) * inputBytes
    inputStep = pixelBytes
    // Rows a power of two apart would share few sets of the first-level cache.
    let channelBytes = shape.inChannels * product.elementBytes
    let rowBytes = (channelBytes + 63) / 64 * 64 + (channelBytes % 1024 == 0 ? 64 : 0)
    inputRowBytes = rowBytes
    let width = tile.columns(isa)
    let packing = PackedLayout(
      winograd: m, rows: shape.inChannels, columns: shape.outChannels, width: width,
      interleave: product.interleave, exactRun: product == .int16 ? Self.exactRun : 0)
    self.packing = packing
    let scales = product == .int16 ? 2 * packing.panelElementCount : nil
    scaleOffset = scales
    // A hostile engine may name any zero point.
    let padValue = types.kind.isOfBytes ? padValue & 0xFF : 0
    sumOffset = padValue == 0 ? nil : scales.map { $0 + 4 * places * shape.outChannels }
    let panelBytes = packing.storedRows * width * (product.columnBytes / product.interleave)
    let bandWidth =
      product == .int16 ? Self.bandWidth(shape.outChannels, panel: width) : shape.outChannels
    let perTile = places * (rowBytes + bandWidth * 4)
    let wanted = max(1, blockBytes / perTile / tile.rows) * tile.rows
    let sizes = TiledMultiply.split(tiles, rows: min(tiles, wanted))
    let most = sizes.max() ?? 1
    let inputPlane = Self.planeBytes(most * rowBytes)
    let outputPlane = Self.planeBytes(most * bandWidth * 4)
    (inputPlaneBytes, outputPlaneBytes) = (inputPlane, outputPlane)
    workspaceByteCount = places * (inputPlane + outputPlane)
    let bands = stride(from: 0, to: shape.outChannels, by: bandWidth).map { first in
      let count = min(bandWidth, shape.outChannels - first)
      return Band(
        first: first, count: count, weights: first / width * panelBytes,
        isLast: first + count == shape.outChannels)
    }
    self.bands = bands
    let bandSizes = [bandWidth, bands[bands.count - 1].count]

    var blocks: [Block] = []
    var products: [TiledMultiply] = []
    var known: [Int: Int] = [:]
    var first = 0
    for count in sizes {
      if known[count] == nil {
        known[count] = products.count
        for columns in bandSizes {
          products.append(
            try Self.product(
              count, columns, shape, tile: tile, isa: isa, rowBytes: rowBytes,
              inputPlane: inputPlane,
              outputPlane: outputPlane, places: places, kind: product,
              weightPlane: packing.panelCount * panelBytes))
        }
      }
      blocks.append(Block(first: first, count: count, product: known[count] ?? 0))
      first += count
    }
    self.blocks = blocks
    self.products = products

    var inputs: [WinogradKernel] = []
    var inputOfColumn: [Int] = []
    var knownColumns: [Range<Int>: Int] = [:]
    for column in 0..<tilesWide {
      let start = column * m - shape.padLeft
      let inside = max(0, -start)..<max(max(0, -start), min(size, shape.inWidth - start))
      let columns = inside.isEmpty ? 0..<0 : inside
      if knownColumns[columns] == nil {
        knownColumns[columns] = inputs.count
        inputs.append(
          try WinogradKernel(
            WinogradKernel.Input(
              m: m, channels: shape.inChannels, pixelStep: pixelBytes, columns: columns,
              padValue: padValue, planeStep: inputPlane, inputType: inputType,
              transformedType: transformedType, isa: isa)))
      }
      inputOfColumn.append(knownColumns[columns] ?? 0)
    }
    self.inputs = inputs
    self.inputOfColumn = inputOfColumn

    // Whole tiles, those of the last column, those of the last row, and the last one.
    var outputs: [WinogradKernel] = []
    let lastRows = shape.outHeight - (tilesHigh - 1) * m
    let lastColumns = shape.outWidth - (tilesWide - 1) * m
    for channels in bandSizes {
      for rows in [m, lastRows] {
        for columns in [m, lastColumns] {
          outputs.append(
            try WinogradKernel(
              WinogradKernel.Output(
                m: m, channels: channels, rows: rows, columns: columns, planeStep: outputPlane,
                width: shape.outWidth, pixelStride: resultPitch, operandStride: shape.outChannels,
                sumType: types.kind.sumType, padValue: padValue, epilogue: epilogue,
                operands: operands + (padValue == 0 ? [] : [.perColumn]),
                operandTypes: types.operands + (padValue == 0 ? [] : [.float32]),
                resultType: types.result, isa: isa)))
        }
      }
    }
    self.outputs = outputs
    resultBytes = ElementAccess.byteCount(types.result)
    operandKinds = operands
    operandBytes = types.operands.map(ElementAccess.byteCount)
    outside = FilledRow(
      byteCount: size * pixelBytes + 64, value: padValue)
  }

  private static func inputType(_ kind: ProductKind) -> DataType {
    switch kind {
    case .bfloat16: .bfloat16
    case .int8, .widenedInt8: .uint8
    default: .float32
    }
  }

  /// Planes an odd number of cache lines apart fall into different sets.
  private static func planeBytes(_ bytes: Int) -> Int {
    let lines = (bytes + 63) / 64
    return (lines | 1) * 64
  }

  /// The channels of results that are taken together: some panels.
  private static func bandWidth(_ channels: Int, panel: Int) -> Int {
    min(channels, (leastBand + panel - 1) / panel * panel)
  }

  private static let leastBand = 64

  /// The products of a block of `count` tiles for `columns` channels of results.
  private static func product(
    _ count: Int, _ columns: Int, _ shape: ConvShape, tile: GemmTile, isa: ISA, rowBytes: Int,
    inputPlane: Int,
    outputPlane: Int, places: Int, kind: ProductKind, weightPlane: Int
  ) throws(ApusError) -> TiledMultiply {
    var tiles: [TiledMultiply.Tile] = []
    var patterns: [[Int]] = []
    var known: [Int: Int] = [:]
    var row = 0
    for size in TiledMultiply.split(count, rows: tile.rows) {
      if known[size] == nil {
        known[size] = patterns.count
        patterns.append((0..<size).map { $0 * rowBytes })
      }
      tiles.append(
        TiledMultiply.Tile(offsetInA: row * rowBytes, row: row, pattern: known[size] ?? 0))
      row += size
    }
    let isScaled = kind == .int16
    var offsets: [Int] = []
    var blocks: [TiledMultiply.KBlock] = []
    let words = (shape.inChannels + kind.interleave - 1) / kind.interleave
    // Sums wait in single precision between the blocks of either.
    let usual = isa == .avx512 ? words : TiledMultiply.wordsPerBlock(tile, isa)
    let run = isScaled ? exactRun / kind.interleave : words > usual / 2 * 3 ? usual : words
    for start in stride(from: 0, to: words, by: run) {
      blocks.append(
        TiledMultiply.KBlock(
          first: offsets.count, count: 1, k: min(run, words - start), start: start))
      offsets.append(4 * start)
    }
    return try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, offsets: offsets, blocks: blocks,
        k: words, n: columns, vectors: tile.vectors, ldb: nil,
        ldc: columns, ldo: columns, epilogue: isScaled ? .input(0) * .input(1) : .input(0),
        operands: isScaled ? [.perColumn] : [],
        types: ProductTypes(kind, operands: isScaled ? [.float32] : []),
        groups: (0..<places).map { place in
          TiledMultiply.Group(
            a: place * inputPlane, b: place * weightPlane, c: place * outputPlane / 4,
            column: place * shape.outChannels)
        }))
  }

  /// Convolves. `operands` holds the addresses of the epilogue's extra operands; `workspace` has
  /// `workspaceByteCount` bytes.
  package func run(
    input: UnsafeRawPointer, packedWeights: UnsafeRawPointer, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, workspace: UnsafeMutableRawPointer,
    pool: ThreadPool
  ) {
    let places = (m + 2) * (m + 2)
    let products = workspace + places * inputPlaneBytes
    for block in blocks {
      let chunks = (block.count + Self.tilesPerTask - 1) / Self.tilesPerTask
      pool.parallelFor(chunks, (self, block, input, workspace)) { context, task in
        let (plan, block, input, workspace) = context
        let first = task * Self.tilesPerTask
        for tile in first..<min(block.count, first + Self.tilesPerTask) {
          plan.transformInput(block.first + tile, input, workspace + tile * plan.inputRowBytes)
        }
      }
      for band in bands {
        let scales = packedWeights + (scaleOffset ?? 0) + 4 * band.first
        withUnsafePointer(to: scales) { scales in
          self.products[block.product + (band.isLast ? 1 : 0)].run(
            a: workspace, b: packedWeights + band.weights, c: products,
            operands: scaleOffset == nil ? nil : scales, pool: pool)
        }
        let sums = sumOffset.map { packedWeights + $0 + 4 * band.first }
        pool.parallelFor(chunks, (self, block, band, products, sums, output, operands)) {
          context, task in
          let (plan, block, band, products, sums, output, operands) = context
          let first = task * Self.tilesPerTask
          for tile in first..<min(block.count, first + Self.tilesPerTask) {
            plan.transformOutput(
              block.first + tile, band, products + tile * band.count * 4, sums, output, operands)
          }
        }
      }
    }
  }

  private static let tilesPerTask = 4

  /// The image, row and column of a tile.
  private func place(_ tile: Int) -> (image: Int, row: Int, column: Int) {
    let (rest, column) = tile.quotientAndRemainder(dividingBy: tilesWide)
    let (image, row) = rest.quotientAndRemainder(dividingBy: tilesHigh)
    return (image, row, column)
  }

  private func transformInput(
    _ tile: Int, _ input: UnsafeRawPointer, _ transformed: UnsafeMutableRawPointer
  ) {
    let (image, row, column) = place(tile)
    let pixel = inputStep
    let left = (column * m - shape.padLeft) * pixel
    let rowBytes = shape.inWidth * pixel
    let top = row * m - shape.padTop
    withUnsafeTemporaryAllocation(of: Int.self, capacity: 7) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      arguments[WinogradKernel.Argument.transformed] = Int(bitPattern: transformed)
      for offset in 0..<(m + 2) {
        let y = top + offset
        let isInside = y >= 0 && y < shape.inHeight
        arguments[WinogradKernel.Argument.rows + offset] =
          isInside
          ? Int(bitPattern: input) + (image * shape.inHeight + y) * rowBytes + left
          : outside.address
      }
      inputs[inputOfColumn[column]].code(arguments)
    }
  }

  private func transformOutput(
    _ tile: Int, _ band: Band, _ products: UnsafeMutableRawPointer, _ sums: UnsafeRawPointer?,
    _ output: UnsafeMutableRawPointer, _ operands: UnsafePointer<UnsafeRawPointer>?
  ) {
    let (image, row, column) = place(tile)
    let pixel = (image * shape.outHeight + row * m) * shape.outWidth + column * m
    let words = WinogradKernel.Argument.operands + operandKinds.count + 1
    let variant =
      (band.isLast ? 4 : 0) + (row == tilesHigh - 1 ? 2 : 0) + (column == tilesWide - 1 ? 1 : 0)
    withUnsafeTemporaryAllocation(of: Int.self, capacity: words) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      arguments[WinogradKernel.Argument.transformed] = Int(bitPattern: products)
      arguments[WinogradKernel.Argument.output] =
        Int(bitPattern: output) + (pixel * resultPitch + band.first) * resultBytes
      if let operands {
        for (index, kind) in operandKinds.enumerated() {
          arguments[WinogradKernel.Argument.operands + index] =
            Int(bitPattern: operands[index]) + skipped(kind, pixel, band) * operandBytes[index]
        }
      }
      arguments[words - 1] = Int(bitPattern: sums)
      outputs[variant].code(arguments)
    }
  }

  /// How many elements of an operand lie before those of a tile that starts at a pixel.
  private func skipped(_ kind: EpilogueOperand, _ pixel: Int, _ band: Band) -> Int {
    switch kind {
    case .scalar: 0
    case .perColumn: band.first
    case .full: pixel * shape.outChannels + band.first
    }
  }
}
