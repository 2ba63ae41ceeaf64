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
/// The tiles are taken in blocks, so that what lies between the steps stays in cache.
package final class WinogradPlan: Sendable {
  /// The order of the weights.
  package let packing: PackedLayout
  /// Scratch memory a run needs: the transformed tiles and products of a block.
  package let workspaceByteCount: Int
  private let shape: ConvShape
  private let m: Int
  private let tilesWide: Int
  private let tilesHigh: Int
  /// Tiles of each block, the first tile of each and which product multiplies them.
  private let blocks: [Block]
  private let products: [TiledMultiply]
  private let inputs: [WinogradKernel]
  private let outputs: [WinogradKernel]
  /// Which of `inputs` each column of tiles takes.
  private let inputOfColumn: [Int]
  private let inputBytes: Int
  private let inputRowBytes: Int
  private let inputPlaneBytes: Int
  private let outputPlaneBytes: Int
  private let resultBytes: Int
  private let operandKinds: [EpilogueOperand]
  private let operandBytes: [Int]
  /// Rows outside the input.
  private let zeros: ZeroRow

  private struct Block: Sendable {
    var first: Int
    var count: Int
    var product: Int
  }

  /// How the transformed tiles of a product are multiplied.
  package static func products(_ kind: ProductKind, m: Int) -> ProductKind {
    m == 2 || kind == .float16Weights ? kind : .float32
  }

  /// Whether a convolution has this form.
  package static func takes(_ shape: ConvShape) -> Bool {
    shape.kernelHeight == 3 && shape.kernelWidth == 3 && shape.strideHeight == 1
      && shape.strideWidth == 1 && shape.dilationHeight == 1 && shape.dilationWidth == 1
      && shape.groups == 1 && shape.isValid && shape.inChannels >= 8 && shape.outChannels >= 8
  }

  /// Plans a convolution.
  ///
  /// - Parameters:
  ///   - m: Pixels of results along each side of a tile, 2 or 4.
  ///   - blockBytes: Memory for what lies between the steps; blocks are not smaller than a register
  ///     tile all the same.
  /// - Throws: `not-yet-supported` when the epilogue or the tile cannot be compiled.
  package init(
    _ shape: ConvShape, m: Int, tile: GemmTile, blockBytes: Int, isa: ISA = .current,
    epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes()
  ) throws(ApusError) {
    guard isa != .portable, Self.takes(shape), types.kind != .int8, m == 2 || m == 4,
      types.kind != .bfloat16 || shape.inChannels % 2 == 0
    else {
      throw ApusError(.notYetSupported, "this convolution has no Winograd form")
    }
    let types = types.filled(operands.count)
    let size = m + 2
    let places = size * size
    self.shape = shape
    self.m = m
    tilesWide = (shape.outWidth + m - 1) / m
    tilesHigh = (shape.outHeight + m - 1) / m
    let tiles = shape.batch * tilesWide * tilesHigh
    let inputType: DataType = types.kind == .bfloat16 ? .bfloat16 : .float32
    let product = Self.products(types.kind, m: m)
    let transformedType: DataType = product == .bfloat16 ? .bfloat16 : .float32
    inputBytes = ElementAccess.byteCount(inputType)
    let pixelBytes = shape.inChannels * inputBytes
    // Rows a power of two apart would share few sets of the first-level cache.
    let channelBytes = shape.inChannels * product.elementBytes
    let rowBytes = (channelBytes + 63) / 64 * 64 + (channelBytes % 1024 == 0 ? 64 : 0)
    inputRowBytes = rowBytes
    let perTile = places * (rowBytes + shape.outChannels * 4)
    let wanted = max(1, blockBytes / perTile / tile.rows) * tile.rows
    let sizes = TiledMultiply.split(tiles, rows: min(tiles, wanted))
    let most = sizes.max() ?? 1
    let inputPlane = Self.planeBytes(most * rowBytes)
    let outputPlane = Self.planeBytes(most * shape.outChannels * 4)
    (inputPlaneBytes, outputPlaneBytes) = (inputPlane, outputPlane)
    workspaceByteCount = places * (inputPlane + outputPlane)
    let width = tile.columns(isa)
    let packing = PackedLayout(
      winograd: m, rows: shape.inChannels, columns: shape.outChannels, width: width,
      interleave: product.interleave)
    self.packing = packing

    var blocks: [Block] = []
    var products: [TiledMultiply] = []
    var known: [Int: Int] = [:]
    var first = 0
    for count in sizes {
      if known[count] == nil {
        known[count] = products.count
        products.append(
          try Self.product(
            count, shape, tile: tile, isa: isa, rowBytes: rowBytes, inputPlane: inputPlane,
            outputPlane: outputPlane, places: places, kind: product,
            weightPlane: packing.elementCount / places * (product.columnBytes / product.interleave)))
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
              planeStep: inputPlane, inputType: inputType, transformedType: transformedType,
              isa: isa)))
      }
      inputOfColumn.append(knownColumns[columns] ?? 0)
    }
    self.inputs = inputs
    self.inputOfColumn = inputOfColumn

    // Whole tiles, those of the last column, those of the last row, and the last one.
    var outputs: [WinogradKernel] = []
    let lastRows = shape.outHeight - (tilesHigh - 1) * m
    let lastColumns = shape.outWidth - (tilesWide - 1) * m
    for rows in [m, lastRows] {
      for columns in [m, lastColumns] {
        outputs.append(
          try WinogradKernel(
            WinogradKernel.Output(
              m: m, channels: shape.outChannels, rows: rows, columns: columns,
              planeStep: outputPlane, rowStride: shape.outWidth * shape.outChannels,
              epilogue: epilogue, operands: operands, operandTypes: types.operands,
              resultType: types.result, isa: isa)))
      }
    }
    self.outputs = outputs
    resultBytes = ElementAccess.byteCount(types.result)
    operandKinds = operands
    operandBytes = types.operands.map(ElementAccess.byteCount)
    zeros = ZeroRow(byteCount: size * pixelBytes + 64)
  }

  /// Planes an odd number of cache lines apart fall into different sets.
  private static func planeBytes(_ bytes: Int) -> Int {
    let lines = (bytes + 63) / 64
    return (lines | 1) * 64
  }

  /// The products of a block of `count` tiles.
  private static func product(
    _ count: Int, _ shape: ConvShape, tile: GemmTile, isa: ISA, rowBytes: Int, inputPlane: Int,
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
    let words = shape.inChannels / kind.interleave
    return try TiledMultiply(
      TiledMultiply.Plan(
        isa: isa, tiles: tiles, patterns: patterns, offsets: [0],
        blocks: [TiledMultiply.KBlock(first: 0, count: 1, k: words, start: 0)],
        k: words, n: shape.outChannels, vectors: tile.vectors, ldb: nil,
        ldc: shape.outChannels, epilogue: .input(0), operands: [], types: ProductTypes(kind),
        groups: (0..<places).map { place in
          TiledMultiply.Group(
            a: place * inputPlane, b: place * weightPlane, c: place * outputPlane / 4, column: 0)
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
      self.products[block.product].run(
        a: workspace, b: packedWeights, c: products, operands: nil, pool: pool)
      pool.parallelFor(chunks, (self, block, products, output, operands)) { context, task in
        let (plan, block, products, output, operands) = context
        let first = task * Self.tilesPerTask
        for tile in first..<min(block.count, first + Self.tilesPerTask) {
          plan.transformOutput(
            block.first + tile, products + tile * plan.shape.outChannels * 4, output, operands)
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
    let pixel = shape.inChannels * inputBytes
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
          : zeros.address
      }
      inputs[inputOfColumn[column]].code(arguments)
    }
  }

  private func transformOutput(
    _ tile: Int, _ products: UnsafeMutableRawPointer, _ output: UnsafeMutableRawPointer,
    _ operands: UnsafePointer<UnsafeRawPointer>?
  ) {
    let (image, row, column) = place(tile)
    let pixel = (image * shape.outHeight + row * m) * shape.outWidth + column * m
    let first = pixel * shape.outChannels
    let words = WinogradKernel.Argument.operands + operandKinds.count
    let variant = (row == tilesHigh - 1 ? 2 : 0) + (column == tilesWide - 1 ? 1 : 0)
    withUnsafeTemporaryAllocation(of: Int.self, capacity: words) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      arguments[WinogradKernel.Argument.transformed] = Int(bitPattern: products)
      arguments[WinogradKernel.Argument.output] = Int(bitPattern: output) + first * resultBytes
      if let operands {
        for (index, kind) in operandKinds.enumerated() {
          arguments[WinogradKernel.Argument.operands + index] =
            Int(bitPattern: operands[index]) + (kind == .full ? first * operandBytes[index] : 0)
        }
      }
      outputs[variant].code(arguments)
    }
  }
}

/// Zeros at an address that stays.
private final class ZeroRow: @unchecked Sendable {
  private let memory: UnsafeMutableRawPointer
  var address: Int { Int(bitPattern: memory) }

  init(byteCount: Int) {
    memory = .allocate(byteCount: byteCount, alignment: 64)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
  }

  deinit { memory.deallocate() }
}
