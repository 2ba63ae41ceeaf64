// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Texts joined pair by pair (ONNX `StringConcat`); operands broadcast.
public struct StringConcat: PlainOperator {
  public static let name = "StringConcat"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let a = try inputs.tensor(0)
    let b = try inputs.tensor(1)
    guard a.dataType == .string, b.dataType == .string else {
      throw ApusError(.typeMismatch, "joining \(a) and \(b)")
    }
    guard let p = a.dims, let q = b.dims else { return [typed(.string, nil)] }
    return [typed(.string, try Broadcasting.dims([p, q]))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let a = try inputs.required(0)
    let b = try inputs.required(1)
    let shape = try Broadcasting.shape([a.shape, b.shape])
    let left = Broadcasting.expand(a.strings, a.shape, to: shape)
    let right = Broadcasting.expand(b.strings, b.shape, to: shape)
    return [.tensor(try Tensor(strings: zip(left, right).map { $0 + $1 }, shape: shape))]
  }
}

/// Texts without stop words and in one case (ONNX `StringNormalizer`): a vector, or a matrix of one
/// row. When nothing is left, one empty text is.
public struct StringNormalizer: DataDependentShape {
  public static let name = "StringNormalizer"

  /// What becomes of capital and small letters.
  public enum CaseChange: String, Sendable, Hashable { case none, lower, upper }

  public var caseChange: CaseChange
  /// Whether stop words are compared with their case.
  public var isCaseSensitive: Bool
  public var stopwords: [String]

  /// Creates the operator.
  public init(
    caseChange: CaseChange = .none, isCaseSensitive: Bool = false, stopwords: [String] = []
  ) {
    self.caseChange = caseChange
    self.isCaseSensitive = isCaseSensitive
    self.stopwords = stopwords
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    caseChange = try attributes.choice("case_change", CaseChange.none)
    isCaseSensitive = try attributes.bool("is_case_sensitive", false)
    stopwords = try attributes.strings("stopwords", [])
  }

  public var attributes: Attributes {
    [
      "case_change": .string(caseChange.rawValue), "is_case_sensitive": .bool(isCaseSensitive),
      "stopwords": .strings(stopwords),
    ]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType == .string else { throw ApusError(.typeMismatch, "normalising \(x)") }
    guard let dims = x.dims else { return [.tensor(x)] }
    guard dims.count == 1 || (dims.count == 2 && dims[0].value ?? 1 == 1) else {
      throw ApusError(.typeMismatch, "texts must be a vector or one row, they are \(x)")
    }
    let count = stopwords.isEmpty && dims.last?.value ?? 0 > 0 ? dims.last : nil
    return [typed(.string, dims.dropLast() + [count ?? inputs.freshDim("kept")])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let dropped = Set(isCaseSensitive ? stopwords : stopwords.map { $0.lowercased() })
    var kept = x.strings.filter { !dropped.contains(isCaseSensitive ? $0 : $0.lowercased()) }
    switch caseChange {
    case .none: break
    case .lower: kept = kept.map { $0.lowercased() }
    case .upper: kept = kept.map { $0.uppercased() }
    }
    if kept.isEmpty { kept = [""] }
    return [.tensor(try Tensor(strings: kept, shape: x.shape.dropLast() + [kept.count]))]
  }
}
