// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Powers of two by which channels are divided where they are made and multiplied where they are read.
/// In floats nothing changes, to the last bit; rounded to bytes, small channels keep their detail.
public struct ChannelScaling: Sendable, Hashable {
  /// By the names of nodes: the exponents of what each result channel is divided by.
  public var outputs: [String: [Int]] = [:]
  /// By the names of nodes: the exponents of what the weights of each operand channel are multiplied by.
  public var inputs: [String: [Int]] = [:]

  /// No scaling.
  public init() {}

  /// Whether nothing is scaled.
  public var isEmpty: Bool { outputs.isEmpty && inputs.isEmpty }

  /// The lines of a calibration cache.
  var lines: [String] {
    func line(_ kind: String, _ entry: (key: String, value: [Int])) -> String {
      "\(kind)\t\(entry.key)\t\(entry.value.map { "\($0)" }.joined(separator: " "))"
    }
    return outputs.map { line("divide", $0) }.sorted() + inputs.map { line("multiply", $0) }.sorted()
  }

  /// Reads a line; false when it is damaged.
  mutating func read(_ kind: String, _ name: String, _ text: String) -> Bool {
    let exponents = text.split(separator: " ").map { Int($0) }
    guard exponents.allSatisfy({ $0.map { (-64...64).contains($0) } ?? false }) else { return false }
    if kind == "divide" {
      outputs[name] = exponents.compactMap { $0 }
    } else {
      inputs[name] = exponents.compactMap { $0 }
    }
    return true
  }
}
