// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension MagnitudeHistogram {
  /// The histogram as one line: exponent, bounds, zeros, and the bins that are not empty.
  public var text: String {
    let counts = bins.enumerated().filter { $0.element > 0 }.map { "\($0.offset):\($0.element)" }
    return (["\(exponent.map { "\($0)" } ?? "-")", "\(lower)", "\(upper)", "\(zeroCount)"] + counts)
      .joined(separator: " ")
  }

  /// More of anything was never counted: sums of such counts fit.
  private static let largestCount: UInt64 = 1 << 48

  /// Reads the line; nil when it is damaged.
  public init?(parsing text: String) {
    let fields = text.split(separator: " ")
    guard fields.count >= 4, let lower = Double(fields[1]), let upper = Double(fields[2]),
      let zeros = UInt64(fields[3]), zeros <= Self.largestCount, !lower.isNaN, !upper.isNaN
    else { return nil }
    let exponent = Int(fields[0])
    guard exponent != nil || fields[0] == "-", (-200...200).contains(exponent ?? 0) else { return nil }
    var bins = [UInt64](repeating: 0, count: Self.binCount)
    for field in fields[4...] {
      let parts = field.split(separator: ":")
      guard parts.count == 2, let index = Int(parts[0]), bins.indices.contains(index),
        let count = UInt64(parts[1]), count <= Self.largestCount
      else { return nil }
      bins[index] = count
    }
    self.init(bins: bins, exponent: exponent, lower: lower, upper: upper, zeroCount: zeros)
  }
}
