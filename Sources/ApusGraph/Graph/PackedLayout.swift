// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// The storage order of a constant matrix that a kernel reads in panels.
///
/// The dense tensor is read as `[rows, batch, columns]`: side by side, `batch` matrices of `rows` x
/// `columns` (the groups of a convolution; one for a plain product). Each matrix is stored as
/// `ceil(columns / width)` panels of `rows` x `width` elements, the last one padded with zeros, so
/// that a kernel reads it straight through. The value keeps its logical type; only its bytes are in
/// this order.
///
/// Instructions that multiply several narrow elements at once want them side by side: with `interleave`
/// n, n rows of a column follow each other before the next column. Each `segment` of rows (those of one
/// place in a convolution's window) is then filled up with zeros to a multiple of n.
///
/// With `winograd` m, the dense tensor is `[3, 3, rows, columns]`, and what is stored are the
/// `(m + 2)^2` matrices of its `WinogradWeights`, as `storedType`. With `exactRun`, a dense tensor of bytes
/// is stored as 16-bit integers, `ScaledWeights`. Behind the panels follow numbers of single precision: the
/// scales, one for every column of every matrix, and the sums of the bytes of each column.
public struct PackedLayout: Hashable, Sendable, CustomStringConvertible {
  /// The number of independent matrices.
  public var batch: Int
  /// The rows of each matrix (the depth K of a product).
  public var rows: Int
  /// The columns of each matrix (N of a product).
  public var columns: Int
  /// The columns of a panel.
  public var width: Int
  /// Rows of one column that lie side by side.
  public var interleave: Int
  /// Rows that are padded together; divides `rows`.
  public var segment: Int
  /// The size of the results of Winograd's transform; 0 without one.
  public var winograd: Int
  /// How many products of transformed integers in a row are summed in 32 bits; 0 where the stored
  /// elements are no scaled integers.
  public var exactRun = 0

  /// Creates a layout; without `segment`, all rows are one.
  public init(
    batch: Int, rows: Int, columns: Int, width: Int, interleave: Int = 1, segment: Int? = nil,
    winograd: Int = 0
  ) {
    self.winograd = winograd
    self.interleave = interleave
    // Without interleaving there is nothing to fill up, and equal orders are equal values.
    self.segment = interleave > 1 ? segment ?? rows : rows
    self.batch = batch
    self.rows = rows
    self.columns = columns
    self.width = width
  }

  /// The order of weights for results of `m` x `m`.
  public init(
    winograd m: Int, rows: Int, columns: Int, width: Int, interleave: Int = 1, exactRun: Int = 0
  ) {
    self.init(
      batch: (m + 2) * (m + 2), rows: rows, columns: columns, width: width, interleave: interleave,
      winograd: m)
    self.exactRun = exactRun
  }

  /// The type of the stored elements of a tensor: transformed weights are multiplied in single
  /// precision unless they are side by side for instructions on narrow ones, or widened when read.
  public func storedType(_ type: DataType) -> DataType {
    if exactRun > 0 { return .int16 }
    return winograd > 0 && interleave == 1 && type != .float16 ? .float32 : type
  }

  /// The number of panels of each matrix.
  public var panelCount: Int { (columns + width - 1) / width }

  /// Rows of each matrix with the padding.
  public var storedRows: Int {
    rows / max(1, segment) * ((segment + interleave - 1) / interleave * interleave)
  }

  /// The number of elements of the dense tensor.
  private var denseCount: Int { (winograd > 0 ? 9 : batch) * rows * columns }

  /// The number of stored elements.
  public var elementCount: Int { panelElementCount + scaleElementCount }

  /// The number of elements in panels.
  public var panelElementCount: Int { batch * panelCount * storedRows * width }

  /// The number of 16-bit elements that the scales and sums behind the panels take.
  public var scaleElementCount: Int { exactRun > 0 ? 2 * (batch + 1) * columns : 0 }

  public var description: String {
    if winograd > 0 {
      let side =
        exactRun > 0 ? ", \(interleave), \(exactRun)" : interleave == 1 ? "" : ", \(interleave)"
      return "winograd[\(winograd), \(rows), \(columns), \(width)\(side)]"
    }
    return interleave == 1
      ? "panels[\(batch), \(rows), \(columns), \(width)]"
      : "panels[\(batch), \(rows), \(columns), \(width), \(interleave), \(segment)]"
  }

  /// Packs a dense row-major `[rows, batch, columns]` tensor; the result is a vector of elements.
  ///
  /// - Throws: `invalid-argument` when the tensor has another number of elements.
  public func pack(_ tensor: Tensor) throws(ApusError) -> Tensor {
    let isNibbles = tensor.dataType == .uint4
    guard tensor.count == denseCount, isNibbles ? takesNibbles : !tensor.dataType.isPacked,
      winograd == 0 || transformedTypes.contains(tensor.dataType)
    else {
      throw ApusError(.invalidArgument, "\(tensor.type) cannot be packed as \(self)")
    }
    if isNibbles { return try packNibbles(tensor) }
    if exactRun > 0 { return try packScaled(tensor) }
    let tensor =
      winograd == 0
      ? tensor
      : try WinogradWeights.transform(
        tensor.converted(to: .float32), m: winograd, channels: rows, outputs: columns
      ).converted(to: storedType(tensor.dataType))
    let size = tensor.dataType.bitWidth / 8
    let packed = try Tensor(tensor.dataType, shape: [elementCount])
    walk(size) { dense, stored, count in
      (packed.mutableBytes.baseAddress! + stored).copyMemory(
        from: tensor.bytes.baseAddress! + dense, byteCount: count)
    }
    return packed
  }

  /// The dense row-major tensor of this type and shape from its packed elements.
  public func unpack(_ packed: Tensor, _ type: DataType, shape: [Int]) throws(ApusError) -> Tensor {
    let result = try Tensor(winograd > 0 ? .float32 : type, shape: shape)
    guard packed.count == elementCount, result.count == denseCount,
      packed.dataType == storedType(type)
    else {
      throw ApusError(.invalidArgument, "\(packed.type) is not packed as \(self)")
    }
    if type == .uint4 {
      guard takesNibbles else {
        throw ApusError(.invalidArgument, "\(packed.type) is not packed as \(self)")
      }
      unpackNibbles(packed, into: result)
      return result
    }
    let dense =
      winograd == 0 ? result : try Tensor(packed.dataType, shape: [rows, batch, columns])
    walk(packed.dataType.bitWidth / 8) { denseOffset, stored, count in
      (dense.mutableBytes.baseAddress! + denseOffset).copyMemory(
        from: packed.bytes.baseAddress! + stored, byteCount: count)
    }
    guard winograd > 0 else { return result }
    if exactRun > 0 {
      let start = 2 * panelElementCount
      let scales = UnsafeRawBufferPointer(
        rebasing: packed.bytes[start..<(start + 4 * batch * columns)])
      let scaled = ScaledWeights(integers: dense, scales: scales)
      WinogradWeights.restore(
        try scaled.numbers(), m: winograd, channels: rows, outputs: columns, into: result)
      return try Tensor(result.doubles().map { $0.rounded() }, type, shape: shape)
    }
    WinogradWeights.restore(
      try dense.converted(to: .float32), m: winograd, channels: rows, outputs: columns, into: result
    )
    return try result.converted(to: type)
  }

  private var transformedTypes: [DataType] {
    exactRun > 0 ? [.int8] : [.float32, .float16, .bfloat16]
  }

  /// Packs weights of bytes as scaled integers, then the scales and the sums.
  private func packScaled(_ tensor: Tensor) throws(ApusError) -> Tensor {
    let scaled = try ScaledWeights(
      WinogradWeights.transform(
        tensor.converted(to: .float32), m: winograd, channels: rows, outputs: columns),
      m: winograd, run: exactRun)
    let packed = try Tensor(.int16, shape: [elementCount])
    guard let target = packed.mutableBytes.baseAddress,
      let source = scaled.integers.bytes.baseAddress
    else { return packed }
    walk(2) { dense, stored, count in
      (target + stored).copyMemory(from: source + dense, byteCount: count)
    }
    var sums = [Int64](repeating: 0, count: columns)
    for (index, weight) in tensor.integers().enumerated() { sums[index % columns] += weight }
    (scaled.scales + sums.map(Float.init)).withUnsafeBytes { numbers in
      UnsafeMutableRawBufferPointer(rebasing: packed.mutableBytes[(2 * panelElementCount)...])
        .copyMemory(from: numbers)
    }
    return packed
  }

  /// Calls `body(denseByteOffset, storedByteOffset, byteCount)` for every run of a panel row.
  private func walk(_ size: Int, _ body: (Int, Int, Int) -> Void) {
    if interleave > 1 { return walkInterleaved(size, body) }
    var stored = 0
    for matrix in 0..<batch {
      for panel in 0..<panelCount {
        let column = panel * width
        let run = min(width, columns - column)
        for row in 0..<rows {
          body(((row * batch + matrix) * columns + column) * size, stored, run * size)
          stored += width * size
        }
      }
    }
  }

  private func walkInterleaved(_ size: Int, _ body: (Int, Int, Int) -> Void) {
    let lines = (segment + interleave - 1) / interleave
    for matrix in 0..<batch {
      for panel in 0..<panelCount {
        let start = (matrix * panelCount + panel) * storedRows * width
        let column = panel * width
        let run = min(width, columns - column)
        for row in 0..<rows {
          let (part, inside) = row.quotientAndRemainder(dividingBy: segment)
          let line = part * lines + inside / interleave
          let first = start + line * width * interleave + inside % interleave
          let dense = (row * batch + matrix) * columns + column
          for offset in 0..<run {
            body((dense + offset) * size, (first + offset * interleave) * size, size)
          }
        }
      }
    }
  }
}
