// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Where the tensors of a run of windows lie: input and output as if they were there as a whole, even when
/// only the rows in question are.
struct WindowAddresses {
  let input: Int
  let weights: Int
  let output: Int
  /// The epilogue's extra operands.
  let operands: UnsafePointer<UnsafeRawPointer>?
}

/// Windows that slide over channels-last pixels with every channel on its own: depthwise convolution
/// (weights `[kernelHeight, kernelWidth, channels]`, used as they lie) and pooling.
///
/// One call of generated code computes some output pixels side by side for a block of channels, or all. Blocks of
/// channels or of columns make the rows of input that windows share small enough for the first-level cache. Windows that
/// reach outside the input are handled by starting from fewer window rows, and by code without the missing columns for the
/// pixels at the left and right edge; the input is not copied.
package final class WindowPlan: Sendable {
  /// What becomes of a window.
  package enum Mode: Hashable, Sendable {
    /// The sum of the products with the channel's weights.
    case depthwise
    /// The largest element.
    case maximum
    /// The mean of the elements inside the input.
    case average
    /// The sum over a fixed number: means that count zeros around the input.
    case averageOver(Int)
  }

  private let mode: Mode
  private let shape: ConvShape
  private let resultPitch: Int
  private let isa: ISA
  private let operands: [EpilogueOperand]
  /// Runs of output pixels in a row, by the columns that are computed for all rows of a task before the next ones.
  private let runs: [[Run]]
  private let kernels: [WindowKernel]
  /// Channels that are computed for all rows of a task before the next ones.
  private let blocks: [Range<Int>]
  private let rowsPerTask: Int
  private let inputBytes: Int
  /// Bytes from one pixel of the input to the next.
  private let inputStep: Int
  private let weightBytes: Int
  private let resultBytes: Int
  private let operandBytes: [Int]

  /// Output pixels side by side, and as many behind them, `repeats` times.
  private struct Run: Sendable {
    var x: Int
    var repeats = 1
    /// Window columns within the input of the first pixel; means have only runs where those of all are
    /// equal.
    var columns: Int
    /// The kernels of a block of channels and of the last one.
    var kernel: Int
    var lastKernel: Int
  }

  /// Plans windows; `shape` has as many output as input channels, its groups do not matter. `inputPitch` and
  /// `resultPitch` are the elements from one pixel to the next where there are gaps between them; `channelBlock` and
  /// `columnBlock` are the channels and about the columns that are computed before the next ones, nil for all.
  package init(
    _ mode: Mode, _ shape: ConvShape, isa: ISA = .current, epilogue: ScalarExpr = .input(0),
    operands: [EpilogueOperand] = [], types: ProductTypes = ProductTypes(),
    inputType: DataType = .float32, inputPitch: Int? = nil, resultPitch: Int? = nil, channelBlock: Int? = nil,
    columnBlock: Int? = nil
  ) throws(ApusError) {
    guard isa != .portable, shape.isValid, types.kind != .int8,
      ElementAccess.supports(inputType, isa), mode == .maximum || inputType.isFloat,
      shape.outChannels == shape.inChannels else {
      throw ApusError(.notYetSupported, "these windows have no generated kernel")
    }
    self.mode = mode
    let operation: WindowKernel.Operation =
      switch mode {
      case .depthwise: .multiply
      case .maximum: .maximum
      case .average, .averageOver: .sum
      }
    self.shape = shape
    let pitch = resultPitch ?? shape.outChannels
    self.resultPitch = pitch
    self.isa = isa
    self.operands = operands
    let types = types.filled(operands.count)
    inputBytes = ElementAccess.byteCount(inputType)
    let step = (inputPitch ?? shape.inChannels) * inputBytes
    inputStep = step
    let weightType: DataType = types.kind == .bfloat16 ? .bfloat16 : .float32
    weightBytes = ElementAccess.byteCount(weightType)
    resultBytes = ElementAccess.byteCount(types.result)
    operandBytes = types.operands.map(ElementAccess.byteCount)
    let block = min(max(1, channelBlock ?? shape.inChannels), shape.inChannels)
    // Pixels side by side as far as accumulators, products and the epilogue's registers allow.
    let vectors = (block + isa.lanes - 1) / isa.lanes
    let (pixels, width) = isa == .avx512 ? (vectors == 1 ? 14 : 7, 2) : (vectors == 1 ? 6 : 3, 2)
    blocks = stride(from: 0, to: shape.inChannels, by: block).map { $0..<min(shape.inChannels, $0 + block) }
    let inside = (0..<shape.outWidth).map { Self.columns(shape, $0) }
    let stretches = mode == .average ? Self.columnRuns(shape).map { $0.1 } : [shape.outWidth]
    var runs: [[Run]] = [[]]
    var start = 0
    var kernels: [WindowKernel] = []
    var known: [WindowKernel.Shape: Int] = [:]
    var first = 0
    for size in stretches.flatMap({ TiledMultiply.split($0, rows: pixels) }) {
      let window = WindowKernel.Shape(
        inside: Array(inside[first..<first + size]), vectors: min(width, vectors),
        fullRows: shape.kernelHeight, channels: shape.inChannels, count: block,
        resultPitch: pitch, pixelStep: shape.strideWidth * step,
        columnStep: shape.dilationWidth * step,
        weightRowStep: shape.kernelWidth * shape.inChannels * weightBytes,
        rowStep: shape.dilationHeight * shape.inWidth * step,
        operation: operation, epilogue: epilogue, operands: operands,
        operandTypes: types.operands, resultType: types.result, inputType: inputType,
        weightType: weightType, isa: isa)
      var last = window
      last.count = blocks[blocks.count - 1].count
      for shape in [window, last] where known[shape] == nil {
        known[shape] = kernels.count
        kernels.append(try WindowKernel(shape))
      }
      let run = Run(x: first, columns: inside[first].count, kernel: known[window] ?? 0, lastKernel: known[last] ?? 0)
      if first + size - start > columnBlock ?? .max, first > start {
        runs.append([])
        start = first
      }
      var own = runs.removeLast()
      if let before = own.last, before.kernel == run.kernel, before.lastKernel == run.lastKernel {
        own[own.count - 1].repeats += 1
      } else {
        own.append(run)
      }
      runs.append(own)
      first += size
    }
    self.runs = runs
    self.kernels = kernels
    let work = 2.0 * Double(
      shape.outWidth * shape.outChannels * shape.kernelHeight * shape.kernelWidth)
    rowsPerTask = max(1, min(Int(500_000 / work), shape.outHeight / 4))
  }

  /// Blocks of channels that are worth trying: those with which the input rows of a window fit into the first-level
  /// cache, where all channels do not.
  package static func channelBlocks(_ shape: ConvShape, elementBytes: Int) -> [Int] {
    let channelBytes = max(1, min(shape.kernelHeight, shape.inHeight) * shape.inWidth * elementBytes)
    let most = firstLevelBytes / channelBytes / blockUnit * blockUnit
    guard most < shape.inChannels, shape.outHeight > 1 else { return [] }
    return Set([most, most / 2 / blockUnit * blockUnit]).filter { $0 > 0 }.sorted(by: >)
  }

  /// Blocks of columns that are worth trying, of all channels: where not even a few channels of whole rows fit.
  package static func columnBlocks(_ shape: ConvShape, elementBytes: Int) -> [Int] {
    let columnBytes = min(shape.kernelHeight, shape.inHeight) * shape.inChannels * shape.strideWidth * elementBytes
    let most = firstLevelBytes / max(1, columnBytes)
    guard most >= leastColumns, most < shape.outWidth, shape.outHeight > 1 else { return [] }
    return [most]
  }

  /// Fewer make the columns that two blocks read weigh.
  private static let leastColumns = 14
  /// Half of what first-level caches hold: results pass through it, too.
  private static let firstLevelBytes = 24 << 10
  /// Two vectors.
  private static let blockUnit = 32

  /// Stretches of an output row: `(first pixel, pixels, window columns inside the input)`.
  static func columnRuns(_ shape: ConvShape) -> [(Int, Int, Range<Int>)] {
    var result: [(Int, Int, Range<Int>)] = []
    for x in 0..<shape.outWidth {
      let columns = columns(shape, x)
      if let last = result.last, last.2 == columns {
        result[result.count - 1].1 += 1
      } else {
        result.append((x, 1, columns))
      }
    }
    return result
  }

  /// The window columns within the input of an output pixel.
  static func columns(_ shape: ConvShape, _ x: Int) -> Range<Int> {
    inside(
      start: x * shape.strideWidth - shape.padLeft, step: shape.dilationWidth,
      count: shape.kernelWidth, limit: shape.inWidth)
  }

  /// The window places `start + i * step` that lie in `0..<limit`.
  static func inside(start: Int, step: Int, count: Int, limit: Int) -> Range<Int> {
    let low = start >= 0 ? 0 : min(count, (-start + step - 1) / step)
    let high = start >= limit ? 0 : min(count, (limit - start + step - 1) / step)
    return low..<max(low, high)
  }

  /// Computes all windows; `weights` only for convolution. `operands` holds the addresses of the epilogue's extra operands.
  package func run(
    input: UnsafeRawPointer, weights: UnsafeRawPointer? = nil, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, pool: ThreadPool
  ) {
    let blocks = (shape.outHeight + rowsPerTask - 1) / rowsPerTask
    let addresses = WindowAddresses(
      input: Int(bitPattern: input), weights: weights.map { Int(bitPattern: $0) } ?? 0,
      output: Int(bitPattern: output), operands: operands)
    pool.parallelFor(shape.batch * blocks, (self, addresses, blocks)) { context, task in
      let (plan, addresses, blocks) = context
      let first = task % blocks * plan.rowsPerTask
      let end = min(plan.shape.outHeight, first + plan.rowsPerTask)
      plan.run(image: task / blocks, rows: first..<end, addresses)
    }
  }

  /// Computes some rows of one image on the calling thread.
  func run(image: Int, rows: Range<Int>, _ addresses: WindowAddresses) {
    for block in blocks {
      for runs in runs { run(image: image, rows: rows, runs, block, addresses) }
    }
  }

  private func run(
    image: Int, rows: Range<Int>, _ runs: [Run], _ block: Range<Int>, _ addresses: WindowAddresses
  ) {
    let s = shape
    let isLast = block.upperBound == s.inChannels
    let pixel = inputStep
    let words = WindowKernel.Argument.operands + operands.count
    withUnsafeTemporaryAllocation(of: Int.self, capacity: words) { buffer in
      guard let arguments = buffer.baseAddress else { return }
      for y in rows {
        let top = y * s.strideHeight - s.padTop
        let rows = Self.inside(
          start: top, step: s.dilationHeight, count: s.kernelHeight, limit: s.inHeight)
        let line = (image * s.inHeight + top + rows.lowerBound * s.dilationHeight) * s.inWidth
        for run in runs {
          let left = run.x * s.strideWidth - s.padLeft
          let number = (image * s.outHeight + y) * s.outWidth + run.x
          arguments[WindowKernel.Argument.input] =
            addresses.input &+ (line + left) * pixel + block.lowerBound * inputBytes
          arguments[WindowKernel.Argument.weights] =
            addresses.weights
            + (rows.lowerBound * s.kernelWidth * s.inChannels + block.lowerBound) * weightBytes
          arguments[WindowKernel.Argument.output] =
            addresses.output &+ (number * resultPitch + block.lowerBound) * resultBytes
          arguments[WindowKernel.Argument.rows] = rows.count
          arguments[WindowKernel.Argument.repeats] = run.repeats
          arguments[WindowKernel.Argument.factor] = factor(rows.count * run.columns)
          if let values = addresses.operands {
            for (index, kind) in operands.enumerated() {
              arguments[WindowKernel.Argument.operands + index] =
                Int(bitPattern: values[index])
                + ((kind == .full ? number * s.outChannels : 0) + (kind == .scalar ? 0 : block.lowerBound))
                * operandBytes[index]
            }
          }
          kernels[isLast ? run.lastKernel : run.kernel].code(arguments)
        }
      }
    }
  }

  /// What the sum over a window with `inside` elements in the input is multiplied by.
  private func factor(_ inside: Int) -> Int {
    switch mode {
    case .depthwise, .maximum: 0
    case .average: Int((1 / Float(max(1, inside))).bitPattern)
    case .averageOver(let count): Int((1 / Float(max(1, count))).bitPattern)
    }
  }
}
