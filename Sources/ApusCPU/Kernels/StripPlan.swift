// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Consecutive channels-last convolutions, computed together in strips of output rows, so that what lies
/// between them is read from the second-level cache while it is still there. The first stage may be an
/// elementwise operator instead, and the largest elements of windows may be taken of a result.
///
/// A thread goes down an image, or a part of one. For each strip every stage computes the rows that the next
/// stage needs and that are not there yet: rows that two windows share are kept from strip to strip, and only
/// where parts of an image meet are they computed twice.
package final class StripPlan: Sendable {
  /// One of the convolutions: of 1x1 windows that move by one, or depthwise, or first and of any windows; or an
  /// elementwise operator, with the shape of a 1x1 convolution of as many channels; or windows whose largest
  /// elements are taken, with the shape of a depthwise convolution.
  package struct Stage: Sendable {
    package var shape: ConvShape
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    package var types: ProductTypes
    /// What stands around the input, in every byte.
    package var padValue: Int
    /// The register tile; nil for one by estimate. Depthwise stages have none.
    package var tile: GemmTile?
    /// The elementwise operator, if it is one; the epilogue and its operands say nothing then.
    package var elementwise: StripElementwise?

    /// Whether the largest elements of windows are taken: of the result's type, without weights and epilogue.
    package var isMaximum = false

    /// Whether the stage is a matrix product.
    package var isProduct: Bool { !isMaximum && !shape.isDepthwise && elementwise == nil }

    /// Whether it is a depthwise convolution by dot products.
    package func isDotWindow(_ isa: ISA) -> Bool {
      shape.isDepthwise && elementwise == nil && !isMaximum && DotWindowPlan.takes(shape, types.kind, isa: isa)
    }

    /// Describes a stage.
    package init(
      _ shape: ConvShape, epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
      types: ProductTypes = ProductTypes(), padValue: Int = 0, tile: GemmTile? = nil
    ) {
      self.shape = shape
      self.epilogue = epilogue
      self.operands = operands
      self.types = types
      self.padValue = padValue
      self.tile = tile
    }
  }

  /// Where a stage's operands lie.
  package struct Operands {
    package var weights: UnsafeRawPointer
    /// The epilogue's extra operands.
    package var extras: UnsafePointer<UnsafeRawPointer>

    /// Names the addresses.
    package init(weights: UnsafeRawPointer, extras: UnsafePointer<UnsafeRawPointer>) {
      self.weights = weights
      self.extras = extras
    }
  }

  /// Scratch memory a run needs.
  package let workspaceByteCount: Int
  private let stages: [StageCode]
  private let batch: Int
  /// The parts of an image, each the work of one thread.
  private let parts: [[Step]]
  /// Threads, or rather what a thread may take at once: each has scratch memory of its own.
  private let slotCount: Int
  private let slotBytes: Int
  /// Where in the workspace the first stage's input lies with what stands around it, if that must be made.
  private let preparedOffset: Int
  /// Where rows of bytes are widened in a slot.
  private let wideningOffset: Int
  /// Where the result of each stage but the last lies in a slot.
  private let buffers: [Buffer]
  private let imageRows: [ImageRows]

  /// Generated code of a stage.
  private enum StageCode: Sendable {
    /// With the bytes of a row of pixels that are widened before, 0 where they are multiplied as they lie.
    case product(TiledMultiply, widenedRow: Int)
    case convolution(ConvPlan)
    case window(WindowPlan)
    case dotWindow(DotWindowPlan)
    case elementwise(StripElementwise.Code)
  }

  /// Rows of a result between two stages.
  private struct Buffer: Sendable {
    var offset: Int
    var rowBytes: Int
  }

  /// The rows of a stage's input and output in an image, and their sizes.
  private struct ImageRows: Sendable {
    var inputRows: Int
    var inputRowBytes: Int
    var outputRows: Int
    var outputWidth: Int
  }

  /// What one stage does for one strip.
  private struct Step: Sendable {
    var stage: Int
    /// The first row in the buffer before the stage, and in the one behind it.
    var inputStart = 0
    var outputStart = 0
    /// Rows of the result that are kept and come first in the buffer now: from where they lie.
    var moved = 0..<0
    /// Rows computed.
    var rows: Range<Int>
    /// The same as tiles of a product.
    var tiles = 0..<0
  }

  /// Plans a chain.
  ///
  /// - Parameters:
  ///   - stages: The convolutions; the result of each is the input of the next. Only the last may have extra
  ///     operands of its result's shape.
  ///   - rows: Output rows in a strip.
  ///   - threadCount: Threads to have work for.
  /// - Throws: `not-yet-supported` for other stages, and when an epilogue cannot be compiled.
  package init(_ stages: [Stage], rows: Int, threadCount: Int, isa: ISA = .current)
    throws(ApusError)
  {
    guard isa != .portable, rows > 0, let last = stages.last, Self.takes(stages, isa: isa) else {
      throw ApusError(.notYetSupported, "these convolutions have no code for strips")
    }
    batch = last.shape.batch
    imageRows = stages.map { stage in
      let s = stage.shape
      return ImageRows(
        inputRows: s.inHeight, inputRowBytes: s.inWidth * s.inChannels * stage.types.kind.storedBytes,
        outputRows: s.outHeight, outputWidth: s.outWidth)
    }
    let strips = (last.shape.outHeight + rows - 1) / rows
    // With several threads parts enough that a slow one can take fewer.
    let wanted = threadCount == 1 ? 1 : (2 * threadCount + batch - 1) / batch
    let partCount = max(1, min(strips, wanted))
    slotCount = threadCount == 1 ? 1 : min(batch * partCount, 2 * threadCount)
    var schedule = Schedule(stages)
    var parts: [[Step]] = []
    for part in 0..<partCount {
      let range = strips * part / partCount..<strips * (part + 1) / partCount
      parts.append(schedule.steps(range.map { $0 * rows..<min(last.shape.outHeight, ($0 + 1) * rows) }))
    }
    var buffers: [Buffer] = []
    var offset = 0
    for (index, stage) in stages.dropLast().enumerated() {
      let rowBytes =
        stage.shape.outWidth * stage.shape.outChannels * ElementAccess.byteCount(stage.types.result)
      buffers.append(Buffer(offset: offset, rowBytes: rowBytes))
      // Kernels read whole words behind the last row.
      offset += (schedule.mostRows[index] * rowBytes + 64 + 63) / 64 * 64
    }
    self.buffers = buffers
    wideningOffset = offset
    offset += stages.indices.reduce(0) { max($0, Self.widenedRow(stages[$1]) * Self.mostRows(of: $1, parts)) }
    slotBytes = (offset + 4095) / 4096 * 4096
    var code: [StageCode] = []
    for (index, stage) in stages.enumerated() {
      code.append(try Self.compile(stage, index, &parts, isa))
    }
    preparedOffset = slotBytes * slotCount
    if case .convolution(let plan)? = code.first {
      workspaceByteCount = preparedOffset + plan.workspaceByteCount
    } else {
      workspaceByteCount = preparedOffset
    }
    self.stages = code
    self.parts = parts
  }

  /// Whether there is code for these stages in strips.
  package static func takes(_ stages: [Stage], isa: ISA = .current) -> Bool {
    guard stages.count > 1 else { return false }
    for (index, stage) in stages.enumerated() {
      let s = stage.shape
      guard s.isValid else { return false }
      if index > 0 {
        let before = stages[index - 1]
        let type = before.types.result
        guard before.shape.outChannels == s.inChannels, before.shape.outHeight == s.inHeight,
          before.shape.outWidth == s.inWidth, before.shape.batch == s.batch,
          ElementAccess.byteCount(type) == stage.types.kind.storedBytes
        else { return false }
      }
      if index < stages.count - 1, stage.operands.contains(.full) { return false }
      if stage.elementwise != nil {
        guard index == 0, s.isPixelwise, s.inChannels == s.outChannels else { return false }
      } else if stage.isMaximum {
        guard index > 0, s.inChannels == s.outChannels else { return false }
      } else if s.isDepthwise {
        if stage.types.kind.isOfBytes, !stage.isDotWindow(isa) { return false }
      } else if s.isPixelwise {
        guard s.inChannels % stage.types.kind.interleave == 0 else { return false }
      } else {
        let isOdd = ConvPlan.memberElements(s) % stage.types.kind.interleave != 0
        guard index == 0, s.groups == 1, !isOdd || stage.types.kind.isOfBytes else { return false }
      }
    }
    return true
  }

  /// The stages' rows, from the last to the first, strip by strip.
  private struct Schedule {
    let stages: [Stage]
    /// The most rows that lie between a stage and the next.
    var mostRows: [Int]

    init(_ stages: [Stage]) {
      self.stages = stages
      mostRows = stages.map { _ in 0 }
    }

    /// The steps of a part of an image, given the output rows of its strips.
    mutating func steps(_ strips: [Range<Int>]) -> [Step] {
      var steps: [Step] = []
      var held = stages.map { _ in 0..<0 }
      for strip in strips {
        var needed = strip
        var own: [Step] = []
        for index in stages.indices.reversed() {
          var step = Step(stage: index, rows: needed)
          if index < stages.count - 1, !needed.isEmpty {
            // What is there already and needed again moves to the front.
            let before = held[index]
            if before.contains(needed.lowerBound) {
              let start = needed.lowerBound - before.lowerBound
              step.moved = start..<before.count
              step.rows = min(before.upperBound, needed.upperBound)..<needed.upperBound
            }
            held[index] = needed.lowerBound..<max(needed.upperBound, step.rows.lowerBound)
            step.outputStart = needed.lowerBound
            mostRows[index] = max(mostRows[index], held[index].count, step.moved.count)
          }
          needed = Self.inputRows(stages[index].shape, step.rows)
          step.inputStart = needed.lowerBound
          own.append(step)
        }
        steps += own.reversed()
      }
      return steps
    }

    /// The rows of the input that windows reach.
    private static func inputRows(_ s: ConvShape, _ rows: Range<Int>) -> Range<Int> {
      guard !rows.isEmpty else { return 0..<0 }
      let first = rows.lowerBound * s.strideHeight - s.padTop
      let end =
        (rows.upperBound - 1) * s.strideHeight - s.padTop + (s.kernelHeight - 1) * s.dilationHeight + 1
      let low = max(0, min(first, s.inHeight - 1))
      return low..<max(low, min(end, s.inHeight))
    }
  }

  /// Generates a stage's code and gives its steps their tiles.
  private static func compile(_ stage: Stage, _ index: Int, _ parts: inout [[Step]], _ isa: ISA)
    throws(ApusError) -> StageCode
  {
    let s = stage.shape
    let kind = stage.types.kind
    if let elementwise = stage.elementwise {
      return .elementwise(try StripElementwise.Code(elementwise, s, isa: isa))
    }
    if stage.isMaximum {
      return .window(
        try WindowPlan(
          .maximum, s, isa: isa, types: ProductTypes(.float32, result: stage.types.result),
          inputType: stage.types.result))
    }
    if s.isDepthwise {
      if stage.isDotWindow(isa) {
        return .dotWindow(
          try DotWindowPlan(
            s, epilogue: stage.epilogue, operands: stage.operands, types: stage.types,
            padValue: stage.padValue, isa: isa))
      }
      return .window(
        try WindowPlan(
          .depthwise, s, isa: isa, epilogue: stage.epilogue, operands: stage.operands,
          types: stage.types, inputType: kind == .bfloat16 ? .bfloat16 : .float32))
    }
    if !s.isPixelwise {
      return .convolution(
        try ConvPlan(
          s, tile: stage.tile, isa: isa, epilogue: stage.epilogue, operands: stage.operands, types: stage.types,
          padValue: stage.padValue, rowByRow: true))
    }
    let pixelBytes = s.inChannels * kind.elementBytes
    let most = mostRows(of: index, parts)
    let tile =
      stage.tile
      ?? GemmTile.choose(run: most * s.outWidth, n: s.outChannels, stride: pixelBytes / 4, isa: isa, kind: kind)
    var tiles: [TiledMultiply.Tile] = []
    var patterns: [[Int]] = []
    var known: [Int: Int] = [:]
    for part in parts.indices {
      for number in parts[part].indices where parts[part][number].stage == index {
        let rows = parts[part][number].rows
        let first = tiles.count
        var pixel = rows.lowerBound * s.outWidth
        for size in TiledMultiply.split(rows.count * s.outWidth, rows: tile.rows) {
          let pattern = known[size] ?? patterns.count
          if pattern == patterns.count {
            known[size] = pattern
            patterns.append((0..<size).map { $0 * pixelBytes })
          }
          tiles.append(
            TiledMultiply.Tile(offsetInA: pixel * pixelBytes, row: pixel, pattern: pattern))
          pixel += size
        }
        parts[part][number].tiles = first..<tiles.count
      }
    }
    let k = s.inChannels / kind.interleave
    return .product(
      try TiledMultiply(
        TiledMultiply.Plan(
          isa: isa, tiles: tiles, patterns: patterns, offsets: [0],
          blocks: [TiledMultiply.KBlock(first: 0, count: 1, k: k, start: 0)], k: k,
          n: s.outChannels, vectors: tile.vectors, ldb: nil, ldc: s.outChannels, ldo: s.outChannels,
          epilogue: stage.epilogue, operands: stage.operands,
          types: stage.types.filled(stage.operands.count), sumsTogether: tile.sumsTogether)),
      widenedRow: widenedRow(stage))
  }

  /// The most rows that a step of a stage computes.
  private static func mostRows(of stage: Int, _ parts: [[Step]]) -> Int {
    parts.joined().reduce(1) { $1.stage == stage ? max($0, $1.rows.count) : $0 }
  }

  /// The bytes of a row of pixels that a product reads widened, 0 where it does not.
  private static func widenedRow(_ stage: Stage) -> Int {
    guard stage.types.kind.widens, stage.isProduct, stage.shape.isPixelwise else { return 0 }
    return stage.shape.outWidth * stage.shape.inChannels * stage.types.kind.elementBytes
  }

  /// Computes the last stage's result.
  ///
  /// - Parameters:
  ///   - operands: Those of each stage.
  ///   - workspace: `workspaceByteCount` bytes.
  package func run(
    input: UnsafeRawPointer, operands: UnsafePointer<Operands>, output: UnsafeMutableRawPointer,
    workspace: UnsafeMutableRawPointer, pool: ThreadPool
  ) {
    var input = input
    if case .convolution(let plan)? = stages.first {
      input = plan.prepared(input, workspace: workspace + preparedOffset, pool)
    }
    pool.parallelFor(slotCount, (self, input, operands, output, workspace)) { context, slot in
      let (plan, input, operands, output, workspace) = context
      let count = plan.batch * plan.parts.count
      let scratch = Int(bitPattern: workspace + slot * plan.slotBytes)
      for job in count * slot / plan.slotCount..<count * (slot + 1) / plan.slotCount {
        plan.run(
          image: job / plan.parts.count, plan.parts[job % plan.parts.count],
          input: Int(bitPattern: input), operands, output: Int(bitPattern: output), scratch)
      }
    }
  }

  private func run(
    image: Int, _ steps: [Step], input: Int, _ operands: UnsafePointer<Operands>, output: Int,
    _ scratch: Int
  ) {
    for step in steps {
      let index = step.stage
      let rows = imageRows[index]
      // Where the batch would begin if all its rows were there.
      var source = input
      if index > 0 {
        source = scratch &+ buffers[index - 1].offset
        source = source &- (image * rows.inputRows + step.inputStart) * rows.inputRowBytes
      }
      var target = output
      if index < buffers.count {
        let buffer = buffers[index]
        let start = scratch &+ buffer.offset
        move(step.moved, start, buffer.rowBytes)
        target = start &- (image * rows.outputRows + step.outputStart) * buffer.rowBytes
      }
      if step.rows.isEmpty { continue }
      let own = operands[index]
      let addresses = WindowAddresses(
        input: source, weights: Int(bitPattern: own.weights), output: target, operands: own.extras)
      switch stages[index] {
      case .product(let multiply, let widenedRow):
        var pixels = source &+ image * rows.inputRows * rows.inputRowBytes
        if widenedRow > 0 {
          let widened = scratch &+ wideningOffset
          widen(step.rows.count * rows.inputRowBytes, pixels &+ step.rows.lowerBound * rows.inputRowBytes, widened)
          pixels = widened &- step.rows.lowerBound * widenedRow
        }
        multiply.run(
          tiles: step.tiles, firstRow: image * rows.outputRows * rows.outputWidth, a: pixels,
          b: addresses.weights, c: target, operands: own.extras)
      case .convolution(let plan): plan.run(image: image, rows: step.rows, addresses, operands: own.extras)
      case .window(let plan): plan.run(image: image, rows: step.rows, addresses)
      case .dotWindow(let plan): plan.run(image: image, rows: step.rows, addresses)
      case .elementwise(let code): code.run(image: image, rows: step.rows, addresses)
      }
    }
  }

  private func widen(_ byteCount: Int, _ source: Int, _ target: Int) {
    guard let source = UnsafeRawPointer(bitPattern: source), let target = UnsafeMutableRawPointer(bitPattern: target)
    else { return }
    ElementCopy(.widenedInt8).copy(source, to: target, byteCount: byteCount)
  }

  /// Moves rows of a buffer to its front.
  private func move(_ rows: Range<Int>, _ start: Int, _ rowBytes: Int) {
    guard !rows.isEmpty, rows.lowerBound > 0,
      let front = UnsafeMutableRawPointer(bitPattern: start)
    else { return }
    memmove(front, front + rows.lowerBound * rowBytes, rows.count * rowBytes)
  }
}

extension ConvShape {
  /// Whether it is a matrix product over pixels: windows of one pixel that move by one, nothing around.
  var isPixelwise: Bool {
    kernelHeight == 1 && kernelWidth == 1 && strideHeight == 1 && strideWidth == 1 && groups == 1
      && !needsPadding && inHeight == outHeight && inWidth == outWidth
  }
}
