// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Whether a tactic takes a problem, and if not, why.
public enum Support: Sendable, Equatable {
  case yes
  case no(because: String)
}

/// The choices a tactic leaves to the tuner: small named integers such as a tile's sizes.
public struct TacticConfiguration: Hashable, Sendable, CustomStringConvertible,
  ExpressibleByDictionaryLiteral
{
  /// Names and values in a fixed order.
  public let values: [Choice]

  /// One choice.
  public struct Choice: Hashable, Sendable {
    public let name: String
    public let value: Int
  }

  /// The configuration of a tactic with nothing to choose.
  public init() { values = [] }

  /// Creates a configuration from a literal.
  public init(dictionaryLiteral elements: (String, Int)...) {
    values = elements.map { Choice(name: $0.0, value: $0.1) }
  }

  /// The value of a choice.
  public subscript(name: String) -> Int? { values.first { $0.name == name }?.value }

  /// `mr14.nv2`, or `default` when there is nothing to choose.
  public var description: String {
    values.isEmpty ? "default" : values.map { "\($0.name)\($0.value)" }.joined(separator: ".")
  }
}

/// Which tensors of a problem a tactic takes with gaps between their rows (`Problem.Operand.pitch`).
public struct PitchSupport: OptionSet, Sendable {
  public let rawValue: Int
  public init(rawValue: Int) { self.rawValue = rawValue }

  /// Operands, as far as `support` does not refuse them.
  public static let operands = PitchSupport(rawValue: 1)
  /// Results. Nothing is written between their rows.
  public static let results = PitchSupport(rawValue: 2)
}

/// A way to compute a class of problems: says which it takes, offers configurations, compiles kernels.
public protocol Tactic: Sendable {
  /// The first part of the tactic id, for example `cpu.conv2d.f32.gemm`.
  var name: String { get }
  /// Where it comes from: `jit` (generated machine code), `native` (compiled loops), `portable`
  /// (the reference semantics).
  var source: String { get }
  /// Raised whenever generated code or packing changes, which makes old timings stale.
  var version: Int { get }
  /// What may lie with gaps between its rows; problems that have more such tensors are not offered.
  var pitches: PitchSupport { get }
  /// What the device lacks, so that the tactic takes no problem at all; nil where it takes some.
  var lacks: String? { get }
  /// Whether the tactic takes the problem.
  func support(_ problem: Problem) -> Support
  /// The configurations worth trying, the best guess first; never empty for a supported problem.
  func configurations(_ problem: Problem) -> [TacticConfiguration]
  /// The packing that constant operands must have.
  func packing(_ problem: Problem, _ configuration: TacticConfiguration) -> [Int: PackedLayout]
  /// Estimated seconds, for ordering candidates that are not measured.
  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double
  /// Compiles a kernel. Constant operands that `packing` names are packed already.
  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  /// The operands whose memory the first result may overwrite.
  func inPlaceInputs(_ problem: Problem) -> [Int]
}

extension Tactic {
  public var version: Int { 1 }
  public var pitches: PitchSupport { [] }
  public var lacks: String? { nil }
  public func configurations(_ problem: Problem) -> [TacticConfiguration] {
    [TacticConfiguration()]
  }
  public func packing(_ problem: Problem, _ configuration: TacticConfiguration)
    -> [Int: PackedLayout]
  { [:] }
  public func inPlaceInputs(_ problem: Problem) -> [Int] { [] }

  /// The id of the tactic in this configuration, as users see it and caches store it.
  public func id(_ configuration: TacticConfiguration, isa: String) -> String {
    "\(name).\(configuration)__\(isa)"
  }
}

/// A tactic in one configuration.
public struct TacticChoice: Sendable {
  /// The tactic.
  public let tactic: any Tactic
  /// Its configuration.
  public let configuration: TacticConfiguration
  /// The id.
  public let id: String

  /// Pairs a tactic with a configuration.
  public init(_ tactic: any Tactic, _ configuration: TacticConfiguration, isa: String) {
    self.tactic = tactic
    self.configuration = configuration
    id = tactic.id(configuration, isa: isa)
  }
}
