// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Second moments of the numbers that a product's weights multiply, as the calibration cache keeps them: mean
/// squares, and correlations in steps of 1/2047.
public struct WeightMoments: Sendable, Hashable {
  /// How the numbers are divided.
  public let blocks: MomentBlocks
  /// How many rows they are the means of.
  public let count: Int
  /// The mean square of every number.
  private(set) var squares: [Float]
  /// What stands above the diagonals of the blocks, divided by the roots of both mean squares.
  let correlations: [Int16]

  private static let steps = 2047.0
  /// The smallest noise, as a share of the mean square in a block.
  private static let noise = 0.01

  init(_ sums: MomentSums) {
    blocks = sums.blocks
    count = sums.count
    let number = Double(max(1, sums.count))
    var squares: [Float] = []
    var correlations: [Int16] = []
    var place = 0
    for _ in 0..<blocks.groups {
      for range in blocks.ranges {
        let size = range.count
        // Row k of a triangle begins with its diagonal element.
        let diagonal = (0..<size).map { sums.sums[place + $0 * size - $0 * ($0 - 1) / 2] }
        for k in 0..<size {
          for j in 1..<max(1, size - k) {
            let scale = (Double(diagonal[k]) * Double(diagonal[k + j])).squareRoot()
            let share = scale > 0 ? Double(sums.sums[place + j]) / scale : 0
            correlations.append(Int16((max(-1, min(1, share)) * Self.steps).rounded()))
          }
          place += size - k
        }
        squares += diagonal.map { Float(Double($0) / number) }
      }
    }
    self.squares = squares
    self.correlations = correlations
  }

  /// The moments of the same numbers divided by something of each channel of one group.
  public func divided(by scales: [Double]) -> WeightMoments {
    var result = self
    for index in squares.indices where !scales.isEmpty {
      let scale = scales[index * scales.count / squares.count]
      result.squares[index] /= Float(scale * scale)
    }
    return result
  }

  /// How rows of weights are rounded that multiply such numbers.
  ///
  /// Of few rows the correlations are mostly chance: they are drawn towards none by their number (as in O.
  /// Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004).
  public var rounding: RowRounding? {
    var (place, square) = (0, 0)
    var result: [[RowRounding.Block]] = []
    for _ in 0..<blocks.groups {
      var row: [RowRounding.Block] = []
      for range in blocks.ranges {
        let size = range.count
        let diagonal = squares[square..<square + size].map { Double($0) }
        let noise = max(Self.noise * diagonal.reduce(0, +) / Double(size), 1e-30)
        let trust = Double(count) / Double(count + size) / Self.steps
        var matrix = [Double](repeating: 0, count: size * size)
        for k in 0..<size {
          matrix[k * size + k] = diagonal[k] + noise
          for j in (k + 1)..<max(k + 1, size) {
            let value = trust * Double(correlations[place]) * (diagonal[k] * diagonal[j]).squareRoot()
            (matrix[k * size + j], matrix[j * size + k]) = (value, value)
            place += 1
          }
        }
        square += size
        guard let rounding = SequentialRounding(moments: matrix) else { return nil }
        row.append(RowRounding.Block(first: range.lowerBound, rounding: rounding))
      }
      result.append(row)
    }
    return RowRounding(blocks: result, columnCount: blocks.rowCount)
  }

  // MARK: Text

  /// Digits of base 64, two for a correlation.
  private static let digits = Array("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_".utf8)

  /// The fields of a line of the calibration cache: sizes and number of rows, mean squares, correlations.
  var fields: [String] {
    var text: [UInt8] = []
    text.reserveCapacity(2 * correlations.count)
    for value in correlations {
      let number = Int(value) + 2048
      text.append(Self.digits[number >> 6])
      text.append(Self.digits[number & 63])
    }
    return [
      "\(blocks.text) \(count)", squares.map { "\($0)" }.joined(separator: " "),
      String(decoding: text, as: UTF8.self),
    ]
  }

  /// Reads the fields; nil when they are damaged.
  init?(fields: ArraySlice<String>) {
    guard fields.count == 3, let head = fields.first, let last = head.lastIndex(of: " "),
      let count = Int(head[head.index(after: last)...]), (0...1 << 32).contains(count),
      let blocks = MomentBlocks(parsing: head[..<last])
    else { return nil }
    let squares = fields[fields.startIndex + 1].split(separator: " ").map { Float($0) ?? .nan }
    let text = Array(fields[fields.startIndex + 2].utf8)
    guard squares.count == blocks.columnCount, squares.allSatisfy({ $0 >= 0 && $0.isFinite }),
      text.count == 2 * (blocks.momentCount - blocks.columnCount)
    else { return nil }
    var values = [Int](repeating: -1, count: 256)
    for (value, digit) in Self.digits.enumerated() { values[Int(digit)] = value }
    var correlations: [Int16] = []
    for index in stride(from: 0, to: text.count, by: 2) {
      let (high, low) = (values[Int(text[index])], values[Int(text[index + 1])])
      guard high >= 0, low >= 0, high << 6 | low > 0 else { return nil }
      correlations.append(Int16((high << 6 | low) - 2048))
    }
    self.blocks = blocks
    self.count = count
    self.squares = squares
    self.correlations = correlations
  }
}
