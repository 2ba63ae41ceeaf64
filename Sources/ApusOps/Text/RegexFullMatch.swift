// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Whether a regular expression matches the whole of each text (ONNX `RegexFullMatch`).
public struct RegexFullMatch: Operator {
  public static let name = "RegexFullMatch"
  public let pattern: String

  /// Creates the operator.
  ///
  /// - Throws: `invalid-attribute` when the pattern is no regular expression.
  public init(pattern: String) throws(ApusError) {
    self.pattern = pattern
    _ = try expression()
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    try self.init(pattern: try attributes.string("pattern", ""))
  }

  public var attributes: Attributes { ["pattern": .string(pattern)] }

  private func expression() throws(ApusError) -> Regex<AnyRegexOutput> {
    do {
      return try Regex(pattern).matchingSemantics(.unicodeScalar)
        .wordBoundaryKind(.simple)
    } catch {
      throw ApusError(.invalidAttribute, "'pattern' is no regular expression: \(error)")
    }
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType == .string else { throw ApusError(.typeMismatch, "matching \(x)") }
    return [typed(.bool, x.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let expression = try expression()
    let matches = x.strings.map { text in
      ((try? expression.wholeMatch(in: text)) ?? nil) == nil ? Int64(0) : 1
    }
    return [.tensor(try Tensor(matches, .bool, shape: x.shape))]
  }
}
