// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The numbers from operand 0 up (or down) to, not including, operand 1 in steps of operand 2.
public struct NumberRange: Operator, DataDependentShape, ShapeValueOperator {
  public static let name = "Range"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [0, 1, 2] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0).dataType
    let others = [try inputs.tensor(1).dataType, try inputs.tensor(2).dataType]
    guard others == [type, type], type.isFloat || type.isInteger else {
      throw ApusError(.typeMismatch, "a range needs three numbers of one type")
    }
    if let a = inputs.constant(0), let b = inputs.constant(1), let c = inputs.constant(2) {
      return [typed(type, [Dim(try Self.length([a, b, c]))])]
    }
    if let start = inputs.dims(0)?.first, let limit = inputs.dims(1)?.first,
      let step = inputs.ints(2)?.first, step > 0
    {
      let length = (limit - start + Dim(step - 1)).floorDivided(by: Dim(step))
      return [typed(type, [length.value.map { Dim(max(0, $0)) } ?? length])]
    }
    return [typed(type, [inputs.freshDim("length")])]
  }

  private static func length(_ tensors: [Tensor]) throws(ApusError) -> Int {
    guard tensors.allSatisfy({ $0.count == 1 && $0.dataType == tensors[0].dataType }),
      tensors[0].dataType.isFloat || tensors[0].dataType.isInteger
    else { throw ApusError(.typeMismatch, "a range needs three single numbers of one type") }
    func tooLong() -> ApusError { ApusError(.resourceLimit, "a range is too long") }
    if tensors[0].dataType.isFloat {
      let v = tensors.map { $0.doubles()[0] }
      guard v[2] != 0, v.allSatisfy(\.isFinite) else {
        throw ApusError(.execution, "a range from \(v[0]) to \(v[1]) cannot go in steps of \(v[2])")
      }
      let length = ((v[1] - v[0]) / v[2]).rounded(.up)
      guard length < 0x1p40 else { throw tooLong() }
      return length > 0 ? Int(length) : 0
    }
    let v = tensors.map { $0.ints()[0] }
    guard v[2] != 0 else { throw ApusError(.execution, "a range cannot go in steps of 0") }
    let (distance, overflow) = v[1].subtractingReportingOverflow(v[0])
    if overflow { throw tooLong() }
    if distance == 0 || (distance > 0) != (v[2] > 0) { return 0 }
    let steps = (distance.magnitude - 1) / v[2].magnitude + 1
    guard steps < 1 << 40 else { throw tooLong() }
    return Int(steps)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let tensors = [try inputs.required(0), try inputs.required(1), try inputs.required(2)]
    let count = try Self.length(tensors)
    let type = tensors[0].dataType
    _ = try Tensor(type, shape: [count])
    if type.isFloat {
      let start = tensors[0].doubles()[0]
      let step = tensors[2].doubles()[0]
      return [
        .tensor(try Tensor((0..<count).map { start + Double($0) * step }, type, shape: [count]))
      ]
    }
    let start = tensors[0].integers()[0]
    let step = tensors[2].integers()[0]
    return [
      .tensor(try Tensor((0..<count).map { start &+ Int64($0) &* step }, type, shape: [count]))
    ]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard let start = inputs.ints(0)?.first, let limit = inputs.ints(1)?.first,
      let step = inputs.ints(2)?.first, step != 0,
      abs(Double(limit) - Double(start)) / abs(Double(step)) <= 1024
    else { return [nil] }
    return [stride(from: start, to: limit, by: step).map { Dim($0) }]
  }
}

/// A tensor of the shape in operand 0 with one value everywhere.
public struct ConstantOfShape: Operator, DataDependentShape, ShapeValueOperator {
  public static let name = "ConstantOfShape"
  /// The value, as a tensor of one element.
  public var value: Tensor

  public init(value: Tensor) { self.value = value }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    value = try attributes.tensor("value")
    guard value.count == 1 else {
      throw ApusError(.invalidAttribute, "the value must be one element, not \(value.shape)")
    }
  }

  public var attributes: Attributes { ["value": .tensor(value)] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try inputs.requireInteger(0, "the shape")
    if let dims = inputs.dims(0) { return [typed(value.dataType, dims)] }
    guard let length = try inputs.tensor(0).shape?.first, length <= 64 else {
      return [typed(value.dataType, nil)]
    }
    return [typed(value.dataType, (0..<length).map { inputs.freshDim("d\($0)") })]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let shape = try inputs.allTensors().parameter(0, "the shape")
    guard value.count == 1 else {
      throw ApusError(.invalidAttribute, "the value must be one element, not \(value.shape)")
    }
    var result = try ElementBuffer(value.dataType, shape: shape)
    result.copy(from: value, count: try Tensor.checkedCount(shape)) { ($0, 0) }
    return [.tensor(try result.finished())]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard value.dataType.isInteger, value.count == 1, let shape = inputs.ints(0), shape.count <= 1
    else { return [nil] }
    let count = shape.first ?? 1
    guard count >= 0, count <= 1024 else { return [nil] }
    return [Array(repeating: Dim(value.ints()[0]), count: count)]
  }
}

/// The sizes of the operand from axis `start` up to, not including, `end`.
public struct Shape: Operator, ShapeValueOperator {
  public static let name = "Shape"
  public var start: Int
  public var end: Int?

  public init(start: Int = 0, end: Int? = nil) {
    self.start = start
    self.end = end
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    start = try attributes.int("start", 0)
    end = try attributes.optionalInt("end")
  }

  public var attributes: Attributes {
    var result: Attributes = ["start": .int(start)]
    if let end { result["end"] = .int(end) }
    return result
  }

  private func axes(_ rank: Int) -> Range<Int> {
    func place(_ axis: Int) -> Int { min(max(axis < 0 ? axis + rank : axis, 0), rank) }
    let first = place(start)
    return first..<max(first, place(end ?? rank))
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    guard let rank = try inputs.tensor(0).rank else {
      return [typed(.int64, [inputs.freshDim("rank")])]
    }
    return [typed(.int64, [Dim(axes(rank).count)])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let shape = try inputs.required(0).shape
    return [.tensor(try .vector(Array(shape[axes(shape.count)])))]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard inputs.has(0), let dims = inputs.types[0]?.tensor?.dims else { return [nil] }
    return [Array(dims[axes(dims.count)])]
  }
}

/// The number of elements.
public struct Size: Operator, ShapeValueOperator {
  public static let name = "Size"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    _ = try inputs.tensor(0)
    return [typed(.int64, [])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    [.tensor(try Tensor([Int64(try inputs.required(0).count)], .int64, shape: []))]
  }

  public func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?] {
    guard inputs.has(0), let dims = inputs.types[0]?.tensor?.dims else { return [nil] }
    return [[dims.reduce(1, *)]]
  }
}

/// A matrix of the operand's shape with ones on a diagonal and zeros elsewhere.
public struct EyeLike: Operator {
  public static let name = "EyeLike"
  public var dataType: DataType?
  public var diagonal: Int

  public init(dataType: DataType? = nil, diagonal: Int = 0) {
    self.dataType = dataType
    self.diagonal = diagonal
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    switch attributes.value("dataType") {
    case .type(let type): dataType = type
    case nil: dataType = nil
    default: throw ApusError(.invalidAttribute, "attribute 'dataType' is no element type")
    }
    diagonal = try attributes.int("diagonal", 0)
  }

  public var attributes: Attributes {
    var result: Attributes = ["diagonal": .int(diagonal)]
    if let dataType { result["dataType"] = .type(dataType) }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard type.rank == nil || type.rank == 2 else {
      throw ApusError(.typeMismatch, "EyeLike takes a matrix, not \(type)")
    }
    return [typed(dataType ?? type.dataType, type.dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let type = dataType ?? x.dataType
    guard x.rank == 2, type != .string, !type.isComplex else {
      throw ApusError(.typeMismatch, "EyeLike takes a matrix of numbers, not \(x.type)")
    }
    var values = Array(repeating: Int64(0), count: x.count)
    for row in 0..<x.shape[0] {
      let (column, overflow) = row.addingReportingOverflow(diagonal)
      if !overflow, column >= 0, column < x.shape[1] { values[row * x.shape[1] + column] = 1 }
    }
    return [.tensor(try Tensor(values, type, shape: x.shape))]
  }
}
