// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A depthwise convolution by dot products: of unsigned bytes with constant signed ones, sums in 32-bit integers, or of
/// BF16, sums in single precision.
///
/// Windows that reach over the top or bottom of the image read a row of the zero point there; those over
/// the sides have code of their own.
package final class DotWindowPlan: Sendable {
  private let shape: ConvShape
  private let resultPitch: Int
  private let operands: [EpilogueOperand]
  private let operandBytes: [Int]
  private let resultBytes: Int
  private let inputBytes: Int
  private let runs: [Run]
  /// For each run's number those that compute `outputRows` rows, then those that compute one.
  private let kernels: [DotWindowKernel]
  private let outputRows: Int
  private let rowsPerTask: Int
  private let padRow: FilledRow

  /// Output pixels side by side, and as many behind them, `repeats` times.
  private struct Run: Sendable {
    var x: Int
    var repeats = 1
    var kernel: Int
  }

  /// Whether the kernels take a convolution.
  package static func takes(_ shape: ConvShape, _ kind: ProductKind, isa: ISA = .current) -> Bool {
    (kind.isOfBytes ? ElementAccess.supports(.uint8, isa) : kind == .bfloat16 && ElementAccess.supports(.bfloat16, isa))
      && shape.isValid && shape.groups == shape.inChannels && shape.groups == shape.outChannels
      && shape.kernelHeight <= DotWindowKernel.mostRows && shape.kernelWidth <= 16
      && shape.strideHeight <= 4
  }

  /// The order of the weights, `[kernelHeight, kernelWidth, channels]`: for each window column panels of
  /// 16 channels, the rows of a channel side by side.
  package static func packing(_ shape: ConvShape, _ kind: ProductKind, isa: ISA = .current) -> PackedLayout {
    PackedLayout(
      batch: shape.kernelWidth, rows: shape.kernelHeight, columns: shape.outChannels,
      width: isa.lanes, interleave: kind.interleave, segment: shape.kernelHeight)
  }

  /// Plans a convolution.
  ///
  /// - Parameters:
  ///   - padValue: What stands around the image.
  ///   - resultPitch: Elements from one output pixel to the next, if there are gaps between them.
  ///   - permutesBytes: Whether to use the byte permutation of AVX-512 VBMI.
  /// - Throws: `not-yet-supported` when the epilogue cannot be compiled.
  package init(
    _ shape: ConvShape, epilogue: ScalarExpr = .input(0), operands: [EpilogueOperand] = [],
    types: ProductTypes = ProductTypes(.int8), padValue: Int = 0,
    resultPitch: Int? = nil, isa: ISA = .current, permutesBytes: Bool = CPUFeatures.host.avx512VBMI
  ) throws(ApusError) {
    guard Self.takes(shape, types.kind, isa: isa) else {
      throw ApusError(.notYetSupported, "these windows have no kernel of dot products")
    }
    let types = types.filled(operands.count)
    self.shape = shape
    let pitch = resultPitch ?? shape.outChannels
    self.resultPitch = pitch
    self.operands = operands
    operandBytes = types.operands.map(ElementAccess.byteCount)
    resultBytes = ElementAccess.byteCount(types.result)
    let kind = types.kind
    let isWide = isa == .avx512
    let sharesRows =
      isWide && kind == .int8 && shape.strideHeight == 1 && shape.dilationHeight == 1 && shape.kernelHeight <= 3
      && shape.kernelWidth <= 3 && shape.outHeight > 1
    outputRows = sharesRows ? 2 : 1
    let permutes = isWide && ((permutesBytes && kind == .int8) || kind == .bfloat16)
    let window = DotWindowKernel.Shape(
      kind: kind, inside: [], outputRows: outputRows, outputWidth: shape.outWidth, channels: shape.inChannels,
      resultPitch: pitch, kernelHeight: shape.kernelHeight, kernelWidth: shape.kernelWidth, stride: shape.strideWidth,
      dilation: shape.dilationWidth, padValue: padValue,
      rowBytes: shape.inWidth * shape.inChannels * kind.storedBytes, rowsAhead: shape.strideHeight * outputRows,
      epilogue: epilogue, operands: operands, operandTypes: types.operands, resultType: types.result,
      stepsFit: types.stepsFit, permutes: permutes, isa: isa)
    var sliding = window
    sliding.slides = true
    if let found = try? Self.kernels(sliding, shape, pixels: DotWindowKernel.slidingPixels(of: shape.outWidth)) {
      (runs, kernels) = found
    } else {
      let pixels = DotWindowKernel.mostPixels(
        kind, columns: shape.kernelWidth, outputRows: outputRows, permutes: permutes, isa: isa)
      (runs, kernels) = try Self.kernels(window, shape, pixels: pixels)
    }
    let span = (shape.outWidth - 1) * shape.strideWidth + (shape.kernelWidth - 1) * shape.dilationWidth + 1
    padRow = FilledRow(byteCount: span * shape.inChannels * kind.storedBytes, value: padValue)
    inputBytes = kind.storedBytes
    let work = shape.outWidth * shape.outChannels * shape.kernelHeight * shape.kernelWidth
    let rows = max(1, min(Self.taskWork / work, shape.outHeight / 4))
    rowsPerTask = (rows + outputRows - 1) / outputRows * outputRows
  }

  /// The kernels of a row of pixels cut into runs of at most so many.
  private static func kernels(
    _ window: DotWindowKernel.Shape, _ shape: ConvShape, pixels: Int
  ) throws(ApusError) -> ([Run], [DotWindowKernel]) {
    var runs: [Run] = []
    var kernels: [DotWindowKernel] = []
    var known: [DotWindowKernel.Shape: Int] = [:]
    var first = 0
    for size in TiledMultiply.split(shape.outWidth, rows: pixels) {
      var window = window
      window.inside = (first..<first + size).map { WindowPlan.columns(shape, $0) }
      if known[window] == nil {
        known[window] = kernels.count
        kernels.append(try DotWindowKernel(window))
        var last = window
        last.outputRows = 1
        if window.outputRows > 1 { kernels.append(try DotWindowKernel(last)) }
      }
      let run = Run(x: first, kernel: known[window] ?? 0)
      if let last = runs.last, last.kernel == run.kernel {
        runs[runs.count - 1].repeats += 1
      } else {
        runs.append(run)
      }
      first += size
    }
    return (runs, kernels)
  }

  /// Products in a task.
  private static let taskWork = 1_000_000

  /// Convolves. `operands` holds the addresses of the epilogue's extra operands.
  package func run(
    input: UnsafeRawPointer, packedWeights: UnsafeRawPointer, output: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>? = nil, pool: ThreadPool
  ) {
    let blocks = (shape.outHeight + rowsPerTask - 1) / rowsPerTask
    let addresses = WindowAddresses(
      input: Int(bitPattern: input), weights: Int(bitPattern: packedWeights),
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
    for y in stride(from: rows.lowerBound, to: rows.upperBound, by: outputRows) {
      self.rows(image: image, y, count: min(outputRows, rows.upperBound - y), addresses)
    }
  }

  /// Computes a row of pixels, or `outputRows` of them.
  private func rows(image: Int, _ y: Int, count: Int, _ addresses: WindowAddresses) {
    typealias Argument = DotWindowKernel.Argument
    let s = shape
    let lines = s.kernelHeight + count - 1
    let firstOperand = Argument.rows + lines
    withUnsafeTemporaryAllocation(of: Int.self, capacity: firstOperand + operands.count) { buffer in
      guard let arguments = buffer.baseAddress else { return }
      arguments[Argument.weights] = addresses.weights
      for run in runs {
        let number = (image * s.outHeight + y) * s.outWidth + run.x
        let left = run.x * s.strideWidth - s.padLeft
        arguments[Argument.repeats] = run.repeats
        arguments[Argument.output] = addresses.output &+ number * resultPitch * resultBytes
        for offset in 0..<lines {
          let line = y * s.strideHeight - s.padTop + offset * s.dilationHeight
          arguments[Argument.rows + offset] =
            line >= 0 && line < s.inHeight
            ? addresses.input &+ ((image * s.inHeight + line) * s.inWidth + left) * s.inChannels * inputBytes
            : padRow.address
        }
        if let values = addresses.operands {
          for (index, kind) in operands.enumerated() {
            arguments[firstOperand + index] =
              Int(bitPattern: values[index])
              + (kind == .full ? number * s.outChannels * operandBytes[index] : 0)
          }
        }
        kernels[run.kernel + (count < outputRows ? 1 : 0)].code(arguments)
      }
    }
  }
}
