// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// Generated code for depthwise convolution by dot products, channels last: of unsigned bytes with signed ones, or of
/// BF16.
///
/// The elements of up to four window rows (bytes) or two (BF16) of one column and channel are put side by side into a
/// 32-bit lane, where one instruction multiplies them with their weights and adds them up. What is put together
/// for a column serves every output pixel whose window has that column, and where windows of bytes are three rows high
/// or less, those of the next output row, too: their weights are shifted by a byte.
///
/// A call computes some output pixels side by side, of one output row or two, for all channels, two vectors of 32-bit
/// lanes at a time where elements can be permuted across whole registers, one else.
package final class DotWindowKernel: Sendable {
  /// What shapes the code.
  package struct Shape: Hashable, Sendable {
    /// Bytes or BF16.
    package var kind: ProductKind
    /// For each output pixel the window columns inside the input; the others hold `padValue`.
    package var inside: [Range<Int>]
    /// Output rows, the second one window row below the first, and pixels from one to the next.
    package var outputRows = 1
    package var outputWidth = 0
    package var channels: Int
    /// Elements from one output pixel to the next.
    package var resultPitch: Int
    package var kernelHeight: Int
    package var kernelWidth: Int
    /// Input pixels between the windows of neighbouring output pixels, and between window columns.
    package var stride: Int
    package var dilation: Int
    package var padValue: Int
    /// Bytes from a row of the input to the next, and how many rows the next windows are further down.
    package var rowBytes: Int
    package var rowsAhead: Int
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    /// The element types of the operands and of the result.
    package var operandTypes: [DataType]
    package var resultType: DataType
    /// Whether what is rounded to bytes fits 32-bit integers.
    package var stepsFit = false
    /// Whether elements can be permuted across a whole register.
    package var permutes: Bool
    /// Whether pixels are finished one after the other (`DotWindowGenerator.slide`) instead of all together.
    package var slides = false
    package var isa: ISA

    /// Output pixels of a row.
    var pixels: Int { inside.count }

    /// Lanes that a window column takes.
    var rowGroups: Int { (kernelHeight + kind.interleave - 1) / kind.interleave }

    /// Input rows that are read.
    package var rowCount: Int { kernelHeight + outputRows - 1 }
  }

  /// Words of the argument block, which a call changes where it goes on; the addresses of the epilogue's operands follow
  /// those of the window's rows.
  package enum Argument {
    package static let output = 0
    package static let weights = 1
    /// How many times as many pixels, one behind the other.
    package static let repeats = 2
    package static let rows = 3
  }

  /// Pixels of a row that are finished one after the other, each with code of its own: with more of them fewer columns
  /// are gathered twice, but with wide images, which caches do not hold, fewer are faster. Measured.
  static func slidingPixels(of width: Int) -> Int { width <= 28 ? 14 : 7 }
  /// Window rows that there are registers for.
  package static let mostRows = 7
  /// Registers for elements on their way into lanes.
  static let underWay = 3
  /// Registers for the orders in which elements of rows go into lanes.
  static func orderCount(_ kind: ProductKind) -> Int { kind == .bfloat16 ? 2 : 1 }

  /// The most output pixels of a row that there are registers for, with weights kept in them if they can be.
  static func mostPixels(
    _ kind: ProductKind, columns: Int, outputRows: Int, permutes: Bool, isa: ISA
  ) -> Int {
    guard isa == .avx512 else { return 6 }
    let vectors = permutes ? 2 : 1
    let free = isa.registerCount - (permutes ? orderCount(kind) : 0) - underWay
    let besides = (free - columns * vectors * outputRows) / outputRows
    return min(14, besides >= 8 ? besides : free) / vectors
  }

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ shape: Shape) throws(ApusError) {
    memory = try ExecutableMemory(DotWindowGenerator(shape).generate(), name: "dot window")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}
