// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// How far one tensor is from another, as reports and tests show it.
public struct TensorDifference: Sendable, CustomStringConvertible {
  /// The shapes and element types, when they differ.
  public let typeMismatch: String?
  /// The largest absolute difference.
  public let worst: Double
  /// Where it is, and the two values there.
  public let worstIndex: [Int]
  public let got: Double
  public let expected: Double
  /// `|a - b| / |b|` in the Euclidean norm.
  public let relativeL2: Double
  /// The cosine of the angle between the two.
  public let cosine: Double
  /// The largest magnitude expected.
  public let scale: Double

  /// Compares `a` with the expected `b`. Equal infinities and two NaNs count as equal.
  public init(_ a: Tensor, _ b: Tensor) {
    guard a.shape == b.shape else {
      typeMismatch = "\(a.type), expected \(b.type)"
      worst = .infinity
      worstIndex = []
      got = .nan
      expected = .nan
      relativeL2 = .infinity
      cosine = 0
      scale = 0
      return
    }
    let x = a.doubles()
    let y = b.doubles()
    var position = 0
    var largest = 0.0
    var errorSum = 0.0
    var xSum = 0.0
    var ySum = 0.0
    var product = 0.0
    var magnitude = 0.0
    for index in x.indices {
      let p = x[index]
      let q = y[index]
      if p == q || (p.isNaN && q.isNaN) {
        if q.isFinite {
          xSum += p * p
          ySum += q * q
          product += p * q
          magnitude = max(magnitude, abs(q))
        }
        continue
      }
      let difference = abs(p - q)
      if !(difference <= largest) {
        largest = difference.isNaN ? .infinity : difference
        position = index
      }
      errorSum += difference * difference
      xSum += p * p
      ySum += q * q
      product += p * q
      magnitude = max(magnitude, abs(q))
    }
    typeMismatch = nil
    worst = largest
    var rest = position
    worstIndex = a.shape.reversed().map { size in
      defer { rest /= max(1, size) }
      return rest % max(1, size)
    }.reversed()
    got = x.isEmpty ? 0 : x[position]
    expected = y.isEmpty ? 0 : y[position]
    relativeL2 = errorSum == 0 ? 0 : (ySum == 0 ? .infinity : (errorSum / ySum).squareRoot())
    cosine = xSum == 0 && ySum == 0 ? 1 : product / (xSum * ySum).squareRoot()
    scale = magnitude
  }

  public var description: String {
    if let typeMismatch { return "is \(typeMismatch)" }
    return
      "worst \(worst) at \(worstIndex) (\(got), expected \(expected)), relative L2 \(relativeL2), cosine \(cosine), passes with tolerance \(scale == 0 ? worst : worst / scale) of the largest value \(scale)"
  }
}
