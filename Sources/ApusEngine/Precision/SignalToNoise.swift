// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Shares of energy as decibels and back.
public enum SignalToNoise {
  /// The ratio in dB for an error with this share of the results' energy; infinite for none.
  public static func decibels(_ share: Double) -> Double { share > 0 ? -10 * log10(share) : .infinity }

  /// The share of energy that an error may have for a ratio in dB.
  public static func share(decibels: Double) -> Double { pow(10, -decibels / 10) }
}
