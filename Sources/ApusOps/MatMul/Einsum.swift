// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Sum of products over named axes (ONNX `Einsum`, NumPy's rules): `ij,jk->ik`. An ellipsis stands
/// for axes that broadcast; without an arrow the result has the letters that occur once, sorted.
public struct Einsum: CostedOperator, TolerantOperator {
  public static let name = "Einsum"
  /// The equation.
  public var equation: String

  /// Creates the operator.
  public init(equation: String) { self.equation = equation }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    equation = try attributes.string("equation")
  }

  public var attributes: Attributes { ["equation": .string(equation)] }

  /// An axis of a term: a letter, or an axis of the ellipsis counted from its end.
  enum Label: Hashable {
    case letter(UInt8)
    case broadcast(Int)
  }

  /// The labels of the operands' axes and of the result's.
  struct Terms {
    var operands: [[Label]]
    var result: [Label]
  }

  /// The equation resolved for operands of these ranks.
  func terms(_ ranks: [Int]) throws(ApusError) -> Terms {
    func wrong(_ what: String) -> ApusError {
      ApusError(.invalidAttribute, "the equation '\(equation)' \(what)")
    }
    let text = equation.utf8.filter { $0 != UInt8(ascii: " ") }
    var left = text
    var right: [UInt8]?
    if let dash = text.firstIndex(of: UInt8(ascii: "-")) {
      guard dash + 1 < text.count, text[dash + 1] == UInt8(ascii: ">") else {
        throw wrong("has a '-' without '>'")
      }
      left = Array(text[..<dash])
      right = Array(text[(dash + 2)...])
    }
    let parts = left.split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false)
    guard parts.count == ranks.count else {
      throw wrong("names \(parts.count) operands, the node has \(ranks.count)")
    }
    var operands: [[Label]] = []
    var widest = 0
    for (part, rank) in zip(parts, ranks) {
      let (before, after, hasEllipsis) = try Self.letters(Array(part), wrong)
      let open = rank - before.count - after.count
      guard hasEllipsis ? open >= 0 : open == 0 else {
        throw wrong("does not fit an operand of rank \(rank)")
      }
      widest = max(widest, open)
      operands.append(before + (0..<open).reversed().map { .broadcast($0) } + after)
    }
    let ellipsis = (0..<widest).reversed().map { Label.broadcast($0) }
    var result: [Label]
    if let right {
      let (before, after, hasEllipsis) = try Self.letters(right, wrong)
      result = before + (hasEllipsis ? ellipsis : []) + after
    } else {
      var counts: [UInt8: Int] = [:]
      for case .letter(let letter) in operands.joined() { counts[letter, default: 0] += 1 }
      let once = counts.filter { $0.value == 1 }.keys.sorted()
      result = ellipsis + once.map { .letter($0) }
    }
    let known = Set(operands.joined())
    guard Set(result).count == result.count, result.allSatisfy(known.contains) else {
      throw wrong("has a result axis twice or from nowhere")
    }
    return Terms(operands: operands, result: result)
  }

  private static func letters(_ text: [UInt8], _ wrong: (String) -> ApusError) throws(ApusError)
    -> (before: [Label], after: [Label], hasEllipsis: Bool)
  {
    var before: [Label] = []
    var after: [Label] = []
    var hasEllipsis = false
    var index = 0
    while index < text.count {
      let byte = text[index]
      if byte == UInt8(ascii: ".") {
        guard !hasEllipsis, index + 2 < text.count, text[index + 1] == byte, text[index + 2] == byte
        else { throw wrong("has a misplaced '.'") }
        hasEllipsis = true
        index += 3
        continue
      }
      let isLetter = (65...90).contains(byte) || (97...122).contains(byte)
      guard isLetter else { throw wrong("has an unexpected character") }
      if hasEllipsis { after.append(.letter(byte)) } else { before.append(.letter(byte)) }
      index += 1
    }
    return (before, after, hasEllipsis)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard inputs.count > 0 else { throw ApusError(.typeMismatch, "Einsum needs an operand") }
    let type = try inputs.tensor(0).dataType
    var dims: [[Dim]] = []
    for index in 0..<inputs.count {
      let operand = try inputs.tensor(index)
      guard operand.dataType == type, type != .string, type != .bool, !type.isComplex else {
        throw ApusError(.typeMismatch, "operands of types \(type) and \(operand.dataType)")
      }
      guard let given = operand.dims else { return [typed(type, nil)] }
      dims.append(given)
    }
    let terms = try terms(dims.map(\.count))
    var sizes: [Label: Dim] = [:]
    for (labels, dims) in zip(terms.operands, dims) {
      for (label, dim) in zip(labels, dims) {
        guard let old = sizes[label] else {
          sizes[label] = dim
          continue
        }
        if let p = old.value, let q = dim.value, p != q, p != 1, q != 1 {
          throw ApusError(
            .typeMismatch, "an axis of '\(equation)' has sizes \(p) and \(q)")
        }
        // A known size other than one decides; else an axis of one follows the other.
        if old.value == nil ? (dim.value ?? 1) != 1 : old.value == 1 { sizes[label] = dim }
      }
    }
    return [typed(type, terms.result.map { sizes[$0] ?? 1 })]
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    let shapes = inputs.compactMap { $0?.shape }
    guard shapes.count == inputs.count, let terms = try? terms(shapes.map(\.count)) else { return 0 }
    var sizes: [Label: Int] = [:]
    for (labels, shape) in zip(terms.operands, shapes) {
      for (label, size) in zip(labels, shape) { sizes[label] = max(size, sizes[label] ?? 1) }
    }
    return sizes.values.reduce(Double(shapes.count)) { $0 * Double($1) }
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    guard let type = inferred.first?.tensor, let shape = type.shape else {
      throw ApusError(.typeMismatch, "the operands of '\(equation)' do not fit")
    }
    let operands = try inputs.allTensors().compactMap { $0 }
    let terms = try terms(operands.map(\.rank))
    if type.dataType.isFloat {
      var sum = try EinsumLoop(operands, terms, shape, operands.map { $0.doubles() })
      return [.tensor(try Tensor(sum.run(zero: 0, one: 1, *, +), type.dataType, shape: shape))]
    }
    var sum = try EinsumLoop(operands, terms, shape, operands.map { $0.integers() })
    return [.tensor(try Tensor(sum.run(zero: 0, one: 1, &*, &+), type.dataType, shape: shape))]
  }
}

/// The loop over all axes of an `Einsum`, result axes outermost. More than two operands are
/// multiplied element by element, which is slow and exact.
private struct EinsumLoop<Number> {
  private let values: [[Number]]
  private let sizes: [Int]
  private let resultRank: Int
  private let strides: [[Int]]
  private let resultCount: Int

  init(_ operands: [Tensor], _ terms: Einsum.Terms, _ shape: [Int], _ values: [[Number]])
    throws(ApusError)
  {
    var sizes: [Einsum.Label: Int] = [:]
    for (labels, tensor) in zip(terms.operands, operands) {
      for (label, size) in zip(labels, tensor.shape) {
        sizes[label] = sizes[label].map { $0 == 1 ? size : $0 } ?? size
      }
    }
    var order = terms.result
    var seen = Set(order)
    for label in terms.operands.joined() where seen.insert(label).inserted { order.append(label) }
    self.sizes = order.map { sizes[$0] ?? 1 }
    _ = try Tensor.checkedCount(self.sizes)
    resultRank = terms.result.count
    resultCount = try Tensor.checkedCount(shape)
    strides = zip(terms.operands, operands).map { labels, tensor in
      let dense = CopyPlan.rowMajorStrides(tensor.shape)
      return order.map { label in
        // A letter that occurs twice in one operand walks its diagonal.
        labels.indices.reduce(0) {
          labels[$1] == label && tensor.shape[$1] != 1 ? $0 + dense[$1] : $0
        }
      }
    }
    self.values = values
  }

  mutating func run(
    zero: Number, one: Number, _ multiply: (Number, Number) -> Number,
    _ add: (Number, Number) -> Number
  ) -> [Number] {
    var result = [Number](repeating: zero, count: resultCount)
    if sizes.contains(0) || resultCount == 0 { return result }
    let inner = sizes[resultRank...].reduce(1, *)
    let last = sizes.count - 1
    var place = [Int](repeating: 0, count: sizes.count)
    var offsets = [Int](repeating: 0, count: values.count)
    for index in 0..<resultCount {
      var sum = zero
      for _ in 0..<inner {
        var product = values[0][offsets[0]]
        for operand in values.indices.dropFirst() {
          product = multiply(product, values[operand][offsets[operand]])
        }
        sum = add(sum, product)
        // The next place, innermost axis first.
        var axis = last
        while axis >= 0 {
          place[axis] += 1
          for operand in offsets.indices { offsets[operand] += strides[operand][axis] }
          if place[axis] < sizes[axis] { break }
          for operand in offsets.indices {
            offsets[operand] -= strides[operand][axis] * sizes[axis]
          }
          place[axis] = 0
          axis -= 1
        }
      }
      result[index] = sum
    }
    return result
  }
}
