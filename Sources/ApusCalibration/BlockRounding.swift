// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Rounding of matrices to four bits, with a scale for each block of rows in a column.
///
/// For each block, a dozen scales around the one its largest weight needs are tried, signed so that
/// this weight becomes -8, and one fitted by least squares to the numbers of the best of them; the
/// scale with the smallest square error stays. Zero points besides scales are searched, too. They take
/// a byte for each block; a matrix has them where that buys more than the same bytes would buy as bits
/// of the weights, of which each is worth 6 dB.
public struct BlockRounding {
  /// `[K, N]` of `uint4`.
  public let numbers: Tensor
  /// `[ceil(K / block), N]`, of half precision unless the weights are too small or too large.
  public let scales: Tensor
  /// `uint8` of the same shape; nil where 8 stands for zero.
  public let zeros: Tensor?
  /// The energy of the rounding error, and that of the weights.
  public let noise: Double
  public let signal: Double

  /// Errors of larger weights have no square in single precision.
  public static let largest: Float = 0x1p60

  typealias Lanes = SIMD16<Float>

  /// Rounds a matrix `[K, N]` of single precision.
  ///
  /// - Throws: `invalid-argument` for anything else, and for weights that are not finite.
  public init(_ weights: Tensor, block: Int) throws(ApusError) {
    guard weights.dataType == .float32, weights.rank == 2, weights.count > 0, block > 0 else {
      throw ApusError(.invalidArgument, "\(weights.type) cannot be rounded in blocks of \(block)")
    }
    let values = weights.floats()
    guard values.allSatisfy({ abs($0) <= Self.largest }) else {
      throw ApusError(.invalidArgument, "weights that are not finite cannot be rounded")
    }
    let (k, n) = (weights.shape[0], weights.shape[1])
    let largest = values.reduce(0) { max($0, abs($1)) }
    let isHalf = largest > 0.02 && largest < 65504
    let blocks = (k - 1) / block + 1
    var search = Search(isHalf: isHalf)
    var plain = Parameters(blocks * n)
    var shifted = Parameters(blocks * n)
    for index in 0..<blocks {
      let rows = index * block..<min(k, (index + 1) * block)
      for column in stride(from: 0, to: n, by: 16) {
        search.load(values, rows, column..<min(n, column + 16), n)
        plain.store(search.symmetric(), at: index * n + column, min(16, n - column))
        shifted.store(search.asymmetric(), at: index * n + column, min(16, n - column))
      }
    }
    let worth = exp2(16 / Double(block))
    let chosen = plain.error > worth * shifted.error ? shifted : plain
    let shape = [blocks, n]
    scales = try Tensor(chosen.scales, shape: shape).converted(to: isHalf ? .float16 : .float32)
    zeros =
      plain.error > worth * shifted.error
      ? try Tensor(chosen.zeros.map { Int64($0) }, .uint8, shape: shape) : nil
    numbers = try Tensor(.uint4, shape: [k, n])
    noise = chosen.error
    signal = values.reduce(0) { $0 + Double($1) * Double($1) }
    chosen.round(values, k, n, block, into: numbers.mutableBytes)
  }

  /// What was chosen for every block.
  private struct Parameters {
    var scales: [Float]
    var zeros: [Float]
    var error = 0.0

    init(_ count: Int) {
      scales = Array(repeating: 0, count: count)
      zeros = Array(repeating: 8, count: count)
    }

    mutating func store(_ found: Search.Found, at index: Int, _ count: Int) {
      for lane in 0..<count {
        scales[index + lane] = found.scale[lane]
        zeros[index + lane] = found.zero[lane]
        error += Double(found.error[lane])
      }
    }

    func round(
      _ values: [Float], _ k: Int, _ n: Int, _ block: Int, into bytes: UnsafeMutableRawBufferPointer
    ) {
      for row in 0..<k {
        let first = row / block * n
        for column in 0..<n {
          let scale = scales[first + column]
          let index = row * n + column
          let steps = scale == 0 ? 0 : (values[index] / scale).rounded(.toNearestOrEven)
          let number = UInt8(max(0, min(15, steps + zeros[first + column])))
          bytes[index / 2] |= index % 2 == 0 ? number : number << 4
        }
      }
    }
  }
}

/// The search for the scales and zero points of sixteen blocks side by side.
private struct Search {
  typealias Lanes = BlockRounding.Lanes

  /// Scales, zero points and the energies of the errors.
  struct Found {
    var scale = Lanes(repeating: 0)
    var zero = Lanes(repeating: 8)
    var error = Lanes(repeating: .infinity)

    mutating func keepBetter(_ other: Found) {
      let better = other.error .< error
      scale.replace(with: other.scale, where: better)
      zero.replace(with: other.zero, where: better)
      error.replace(with: other.error, where: better)
    }
  }

  /// Whether scales are stored in half precision.
  let isHalf: Bool
  /// Sixteen numbers for each row.
  private var rows: [Float] = []
  private var low = Lanes(repeating: 0)
  private var high = Lanes(repeating: 0)

  init(isHalf: Bool) { self.isHalf = isHalf }

  mutating func load(_ values: [Float], _ range: Range<Int>, _ columns: Range<Int>, _ n: Int) {
    rows = Array(repeating: 0, count: range.count * 16)
    low = Lanes(repeating: 0)
    high = low
    for (index, row) in range.enumerated() {
      for (lane, column) in columns.enumerated() {
        let value = values[row * n + column]
        rows[index * 16 + lane] = value
        low[lane] = min(low[lane], value)
        high[lane] = max(high[lane], value)
      }
    }
  }

  func symmetric() -> Found {
    let extreme = low.replacing(with: high, where: high .> -low)
    var best = Found()
    for step in 0..<12 {
      best.keepBetter(measured(extreme / (-9.4 + 0.25 * Float(step)), Lanes(repeating: 8)))
    }
    best.keepBetter(measured(fitted(best), Lanes(repeating: 8)))
    return best
  }

  func asymmetric() -> Found {
    var best = Found()
    for step in 0..<8 {
      let scale = (high - low) * ((0.7 + 0.05 * Float(step)) / 15)
      let middle = 7.5 - (low + high) * 0.5 * Self.inverse(scale)
      for shift: Float in [-0.25, 0.25] {
        let zero = Self.nearest(middle + shift)
        best.keepBetter(measured(scale, zero))
      }
    }
    return best
  }

  /// The energy of the error with these scales, as they are stored.
  private func measured(_ wanted: Lanes, _ zero: Lanes) -> Found {
    let scale = stored(wanted)
    var found = Found(scale: scale, zero: zero, error: Lanes(repeating: 0))
    accumulate(scale, zero, into: &found.error) { value, steps, scale in
      let difference = value - steps * scale
      return difference * difference
    }
    return found
  }

  /// The scale with the least error for the numbers that a scale gives.
  private func fitted(_ found: Found) -> Lanes {
    var products = Lanes(repeating: 0)
    var squares = Lanes(repeating: 0)
    accumulate(found.scale, found.zero, into: &products) { value, steps, _ in steps * value }
    accumulate(found.scale, found.zero, into: &squares) { _, steps, _ in steps * steps }
    return (products / squares).replacing(with: found.scale, where: squares .== 0)
  }

  /// Adds up a function of every value, its steps from zero and the scale. Plain loops over memory become
  /// vector code, which minima of `SIMD16` do not.
  @inline(__always)
  private func accumulate(
    _ scale: Lanes, _ zero: Lanes, into sums: inout Lanes,
    _ term: (_ value: Float, _ steps: Float, _ scale: Float) -> Float
  ) {
    let parameters = [scale, Self.inverse(scale), -zero, 15 - zero]
    parameters.withUnsafeBytes { parameters in
      let scale = parameters.assumingMemoryBound(to: Float.self)
      rows.withUnsafeBufferPointer { rows in
        withUnsafeMutableBytes(of: &sums) { sums in
          let sums = sums.assumingMemoryBound(to: Float.self)
          for row in stride(from: 0, to: rows.count, by: 16) {
            for lane in 0..<16 {
              let value = rows[row + lane]
              let wanted = value * scale[16 + lane]
              let above = wanted < scale[32 + lane] ? scale[32 + lane] : wanted
              let limited = above > scale[48 + lane] ? scale[48 + lane] : above
              // The nearest whole number.
              let steps = (limited + 12_582_912) - 12_582_912
              sums[lane] += term(value, steps, scale[lane])
            }
          }
        }
      }
    }
  }

  private func stored(_ scale: Lanes) -> Lanes {
    // The inverses of smaller scales are infinite.
    var result = scale.replacing(with: 0, where: scale .< 0x1p-120 .& scale .> -0x1p-120)
    guard isHalf else { return result }
    for lane in 0..<16 { result[lane] = SmallFloat.float(fromHalf: SmallFloat.half(result[lane])) }
    return result
  }

  private static func inverse(_ scale: Lanes) -> Lanes {
    (1 / scale).replacing(with: 0, where: scale .== 0)
  }

  /// The nearest whole number between those of zero points.
  private static func nearest(_ value: Lanes) -> Lanes {
    var result = value
    for lane in 0..<16 { result[lane] = max(0, min(15, value[lane].rounded(.toNearestOrEven))) }
    return result
  }
}
