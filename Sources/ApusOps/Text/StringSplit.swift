// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Texts cut at a delimiter (ONNX `StringSplit`): the pieces along a new last axis, filled up with empty
/// texts, and how many there are of each text. Without a delimiter texts are cut at runs of white space.
public struct StringSplit: DataDependentShape {
  public static let name = "StringSplit"
  public var delimiter: String
  /// The most cuts made in one text; nil for as many as there are.
  public var maximumSplits: Int?

  /// Creates the operator.
  public init(delimiter: String = "", maximumSplits: Int? = nil) {
    self.delimiter = delimiter
    self.maximumSplits = maximumSplits
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    delimiter = try attributes.string("delimiter", "")
    let limit = try attributes.int("maximum_splits", -1)
    maximumSplits = limit < 0 ? nil : limit
  }

  public var attributes: Attributes {
    ["delimiter": .string(delimiter), "maximum_splits": .int(maximumSplits ?? -1)]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType == .string else { throw ApusError(.typeMismatch, "splitting \(x)") }
    return [
      typed(.string, x.dims.map { $0 + [inputs.freshDim("pieces")] }), typed(.int64, x.dims),
    ]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let pieces = x.strings.map(split)
    let longest = pieces.reduce(0) { max($0, $1.count) }
    let padded = pieces.flatMap { $0 + Array(repeating: "", count: longest - $0.count) }
    return [
      .tensor(try Tensor(strings: padded, shape: x.shape + [longest])),
      .tensor(try Tensor(pieces.map { Int64($0.count) }, .int64, shape: x.shape)),
    ]
  }

  private func split(_ text: String) -> [String] {
    let limit = maximumSplits ?? .max
    guard delimiter.isEmpty else { return cut(Array(text), Array(delimiter), limit) }
    var pieces: [String] = []
    var rest = text.drop { $0.isWhitespace }
    while !rest.isEmpty {
      guard pieces.count < limit else {
        pieces.append(String(rest))
        break
      }
      let end = rest.firstIndex { $0.isWhitespace } ?? rest.endIndex
      pieces.append(String(rest[..<end]))
      rest = rest[end...].drop { $0.isWhitespace }
    }
    return pieces
  }

  private func cut(_ text: [Character], _ mark: [Character], _ limit: Int) -> [String] {
    var pieces: [String] = []
    var start = 0
    var place = 0
    while place + mark.count <= text.count, pieces.count < limit {
      if text[place..<(place + mark.count)].elementsEqual(mark) {
        pieces.append(String(text[start..<place]))
        place += mark.count
        start = place
      } else {
        place += 1
      }
    }
    return pieces + [String(text[start...])]
  }
}
