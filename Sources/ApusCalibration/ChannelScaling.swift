// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Factors by which channels are divided where they are made and multiplied where they are read, in steps of which
/// an octave has four.
/// In floats nothing changes but the last bits; rounded to bytes, small channels keep their detail. Made larger, they
/// are multiplied by numbers of three bits: the limits of a rectifier, which many values are, must stay exact in bf16.
public struct ChannelScaling: Sendable, Hashable {
  /// By the names of nodes: the steps of what each result channel is divided by.
  public var outputs: [String: [Int]] = [:]
  /// By the names of nodes: the steps of what the weights of each operand channel are multiplied by.
  public var inputs: [String: [Int]] = [:]

  /// No scaling.
  public init() {}

  /// Whether nothing is scaled.
  public var isEmpty: Bool { outputs.isEmpty && inputs.isEmpty }

  /// The steps of an octave.
  public static let perOctave = 4

  /// The factor that steps stand for: 1, 1.25, 1.5, 1.75, 2, 2.5 ..., and their inverses for negative ones.
  public static func factor(_ steps: Int) -> Float {
    guard steps >= 0 else { return 1 / factor(-steps) }
    let significand = 1 + Float(steps % perOctave) / Float(perOctave)
    return Float(sign: .plus, exponent: steps / perOctave, significand: significand)
  }

  /// The most steps whose factor is no more than a ratio, which is 1 at least, or their negative for its inverse.
  public static func steps(in ratio: Double) -> Int {
    guard ratio.isNormal, ratio > 0 else { return 0 }
    guard ratio >= 1 else { return -steps(in: 1 / ratio) }
    return perOctave * Int(ratio.exponent) + Int((ratio.significand - 1) * Double(perOctave))
  }

  /// The lines of a calibration cache.
  package var lines: [String] {
    func line(_ kind: String, _ entry: (key: String, value: [Int])) -> String {
      "\(kind)\t\(entry.key)\t\(entry.value.map { "\($0)" }.joined(separator: " "))"
    }
    return outputs.map { line("divide", $0) }.sorted() + inputs.map { line("multiply", $0) }.sorted()
  }

  /// Reads a line; false when it is damaged.
  package mutating func read(_ kind: String, _ name: String, _ text: String) -> Bool {
    let steps = text.split(separator: " ").map { Int($0) }
    let limit = 64 * Self.perOctave
    guard steps.allSatisfy({ $0.map { (-limit...limit).contains($0) } ?? false }) else { return false }
    if kind == "divide" {
      outputs[name] = steps.compactMap { $0 }
    } else {
      inputs[name] = steps.compactMap { $0 }
    }
    return true
  }
}
