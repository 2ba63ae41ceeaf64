// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The numbers that the bytes of a quantised tensor stand for.
public struct ActivationRange: Hashable, Sendable {
  /// The smallest number, at most 0.
  public var lower: Double
  /// The largest number, at least 0.
  public var upper: Double

  /// Creates a range.
  public init(lower: Double, upper: Double) {
    self.lower = lower
    self.upper = upper
  }

  /// Whether there is nothing in it but zero.
  public var isEmpty: Bool { !(upper > lower) }

  /// The step from one unsigned byte to the next, as single precision has it.
  public var scale: Double { Double(max(Float((upper - lower) / 255), .leastNormalMagnitude)) }

  /// The byte that stands for zero, which is exact: padding and rectifiers make much of it.
  public var zeroPoint: Int { min(255, max(0, Int((-lower / scale).rounded()))) }
}
