// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The coordinates of the elements that are not zero, one column each.
public struct NonZero: Operator, DataDependentShape {
  public static let name = "NonZero"
  public init() {}
  public init(reading attributes: inout AttributeReader) throws(ApusError) {}
  public var attributes: Attributes { [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [0] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    let rank = type.rank.map { Dim($0) } ?? inputs.freshDim("rank")
    return [typed(.int64, [rank, inputs.freshDim("nonzero")])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    guard !x.dataType.isComplex else {
      throw ApusError(.typeMismatch, "NonZero is not defined on \(x.dataType)")
    }
    let found: [Int]
    if x.dataType == .string {
      let texts = x.strings
      found = texts.indices.filter { !texts[$0].isEmpty }
    } else if x.dataType.isFloat {
      let values = x.doubles()
      found = values.indices.filter { values[$0] != 0 }
    } else {
      let values = x.integers()
      found = values.indices.filter { values[$0] != 0 }
    }
    let strides = CopyPlan.rowMajorStrides(x.shape)
    var result: [Int64] = []
    for axis in x.shape.indices {
      for place in found { result.append(Int64(place / strides[axis] % x.shape[axis])) }
    }
    return [.tensor(try Tensor(result, .int64, shape: [x.rank, found.count]))]
  }
}

/// The slices along an axis (of the flattened operand without one) whose place in operand 1 is true.
public struct Compress: Operator, DataDependentShape {
  public static let name = "Compress"
  public var axis: Int?

  public init(axis: Int? = nil) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.optionalInt("axis")
  }

  public var attributes: Attributes { axis.map { ["axis": .int($0)] } ?? [:] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard try inputs.tensor(1).dataType == .bool else {
      throw ApusError(.typeMismatch, "the condition of Compress must be bool")
    }
    let kept = inputs.constant(1).map { Dim($0.integers().filter { $0 != 0 }.count) }
    guard let axis else { return [typed(type.dataType, [kept ?? inputs.freshDim("kept")])] }
    guard var dims = type.dims else { return [typed(type.dataType, nil)] }
    dims[try Axis.resolved(axis, rank: dims.count)] = kept ?? inputs.freshDim("kept")
    return [typed(type.dataType, dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let condition = try inputs.required(1)
    guard condition.dataType == .bool else {
      throw ApusError(.typeMismatch, "the condition of Compress must be bool")
    }
    let shape = axis == nil ? [x.count] : x.shape
    let at = try Axis.resolved(axis ?? 0, rank: shape.count)
    let (outer, size, inner) = Axis.split(shape, at: at)
    let flags = condition.integers()
    let kept = flags.indices.filter { flags[$0] != 0 }
    guard kept.allSatisfy({ $0 < size }) else {
      throw ApusError(.execution, "the condition selects beyond the axis of size \(size)")
    }
    var resultShape = shape
    resultShape[at] = kept.count
    var result = try ElementBuffer(x.dataType, shape: resultShape)
    result.copyRuns(from: x, length: inner, count: outer &* kept.count) { run in
      (run &* inner, (run / kept.count &* size &+ kept[run % kept.count]) &* inner)
    }
    return [.tensor(try result.finished())]
  }
}

/// Vectors with one value at an index and another elsewhere, along a new axis: operands are the
/// indices, the depth and the values [off, on].
public struct OneHot: Operator, DataDependentShape {
  public static let name = "OneHot"
  public var axis: Int

  public init(axis: Int = -1) { self.axis = axis }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    axis = try attributes.int("axis", -1)
  }

  public var attributes: Attributes { ["axis": .int(axis)] }
  public func shapeDecidingInputs(count: Int) -> [Int] { [1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let indices = try inputs.tensor(0)
    _ = try inputs.tensor(1)
    let type = try inputs.tensor(2).dataType
    guard var dims = indices.dims else { return [typed(type, nil)] }
    let at = try Axis.resolved(axis, rank: dims.count + 1)
    let depth = inputs.constant(1)?.ints().first.map { Dim($0) } ?? inputs.dims(1)?.first
    dims.insert(depth ?? inputs.freshDim("depth"), at: at)
    return [typed(type, dims)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let indices = try inputs.required(0)
    let depths = try inputs.required(1)
    let values = try inputs.required(2)
    guard depths.count == 1, values.count == 2, let depth = depths.ints().first, depth >= 0,
      indices.dataType.isInteger || indices.dataType.isFloat
    else {
      throw ApusError(.typeMismatch, "OneHot needs numbers, one depth and two values")
    }
    let at = try Axis.resolved(axis, rank: indices.rank + 1)
    var shape = indices.shape
    shape.insert(depth, at: at)
    let count = try Tensor.checkedCount(shape)
    var result = try ElementBuffer(values.dataType, shape: shape)
    result.copy(from: values, count: count) { ($0, 0) }
    let inner = indices.shape[at...].reduce(1, &*)
    let places = indices.ints()
    var hot: [Int] = []
    for (place, index) in places.enumerated() where index >= -depth && index < depth {
      let row = index < 0 ? index + depth : index
      hot.append((place / inner * depth + row) * inner + place % inner)
    }
    result.copy(from: values, count: hot.count) { (hot[$0], 1) }
    return [.tensor(try result.finished())]
  }
}

/// The elements on and above (or below) diagonal number operand 1, zeros elsewhere.
public struct Trilu: Operator {
  public static let name = "Trilu"
  public var upper: Bool

  public init(upper: Bool = true) { self.upper = upper }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    upper = try attributes.bool("upper", true)
  }

  public var attributes: Attributes { ["upper": .bool(upper)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard type.rank ?? 2 >= 2 else {
      throw ApusError(.typeMismatch, "Trilu takes matrices, not \(type)")
    }
    return [.tensor(type)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    guard x.rank >= 2 else { throw ApusError(.typeMismatch, "Trilu takes matrices, not \(x.type)") }
    let rows = x.shape[x.rank - 2]
    let columns = x.shape[x.rank - 1]
    let given = try inputs.allTensors().optionalParameter(1, "the diagonal")?.first ?? 0
    let diagonal = min(max(given, -rows - 1), columns + 1)
    var kept: [Int] = []
    for place in 0..<x.count {
      let distance = place % columns - place / columns % rows
      if upper ? distance >= diagonal : distance <= diagonal { kept.append(place) }
    }
    var result = try ElementBuffer(x.dataType, shape: x.shape)
    result.copy(from: x, count: kept.count) { (kept[$0], kept[$0]) }
    return [.tensor(try result.finished())]
  }
}
