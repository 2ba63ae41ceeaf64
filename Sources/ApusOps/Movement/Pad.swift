// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The operand with elements added (or removed, where negative) before and after each axis. Operand
/// 1 holds all sizes before, then all after; operand 2 the value and operand 3 the axes, optionally.
public struct Pad: MovementOperator, DataDependentShape, PermutableOperator {
  public static let name = "Pad"
  /// Where added elements come from.
  public enum Mode: String, Sendable { case constant, reflect, edge, wrap }
  public var mode: Mode

  public init(mode: Mode = .constant) { self.mode = mode }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    mode = try attributes.choice("mode", .constant)
  }

  public var attributes: Attributes { ["mode": .string(mode.rawValue)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { count > 3 ? [1, 3] : [1] }

  /// What is added before and after every axis.
  private static func full<Size>(_ pads: [Size], _ axes: [Int]?, _ rank: Int, _ none: Size)
    throws(ApusError) -> [(before: Size, after: Size)]
  {
    let places = try Axis.resolved(axes ?? Array(0..<rank), rank: rank)
    guard pads.count == 2 * places.count else {
      throw ApusError(
        .typeMismatch, "\(pads.count) padding sizes are given for \(places.count) axes")
    }
    var result = Array(repeating: (before: none, after: none), count: rank)
    for (index, axis) in places.enumerated() {
      result[axis] = (pads[index], pads[places.count + index])
    }
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    try inputs.requireInteger(1, "padding sizes")
    if inputs.has(2) {
      guard try inputs.tensor(2).dataType == type.dataType else {
        throw ApusError(.typeMismatch, "\(type) cannot be padded with \(try inputs.tensor(2))")
      }
    }
    if inputs.has(3) { try inputs.requireInteger(3, "axes") }
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    let axes = inputs.has(3) ? inputs.ints(3) : Array(dims.indices)
    guard let pads = inputs.dims(1), let axes else {
      return [typed(type.dataType, dims.indices.map { inputs.freshDim("d\($0)") })]
    }
    let full = try Self.full(pads, axes, dims.count, Dim(0))
    let result = zip(dims, full).map { $0 + $1.before + $1.after }
    if let bad = result.first(where: { $0.value.map { $0 < 0 } ?? false }) {
      throw ApusError(.typeMismatch, "padding \(type) by \(pads) leaves the size \(bad)")
    }
    return [typed(type.dataType, result)]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let full = try Self.full(
      inputs.parameter(1, "padding sizes"), inputs.optionalParameter(3, "axes"), shape.count, 0)
    var result: [Int] = []
    for (size, pad) in zip(shape, full) {
      let (some, first) = size.addingReportingOverflow(pad.before)
      let (all, second) = some.addingReportingOverflow(pad.after)
      guard !first, !second, all >= 0, pad.before > -1 << 62 else {
        throw ApusError(.typeMismatch, "\(shape) cannot be padded by \(full)")
      }
      result.append(all)
    }
    _ = try Tensor.checkedCount(result)
    guard mode == .constant else {
      return try Self.mapped(shape, result, full.map { $0.before }, mode)
    }
    let source = CopyPlan.rowMajorStrides(shape)
    let target = CopyPlan.rowMajorStrides(result)
    var copy = CopyPlan.Copy(
      input: 0, sizes: [], sourceStrides: source, targetStrides: target)
    for axis in shape.indices {
      let from = max(0, -full[axis].before)
      let to = max(0, full[axis].before)
      copy.sizes.append(max(0, min(shape[axis] - from, result[axis] - to)))
      copy.sourceOffset &+= from &* source[axis]
      copy.targetOffset &+= to &* target[axis]
    }
    let isEmpty = copy.sizes.contains(0)
    return CopyPlan(
      outputShapes: [result], copies: isEmpty ? [] : [copy], fill: try Self.fill(inputs))
  }

  /// The value for added elements. Without any operand to tell the type it is sixteen zero bytes,
  /// which is zero in every type.
  private static func fill(_ inputs: [Tensor?]) throws(ApusError) -> Tensor {
    guard let value = inputs.at(2) else {
      return try Tensor(inputs.at(0)?.dataType ?? .complex128, shape: [])
    }
    guard value.count == 1 else {
      throw ApusError(.typeMismatch, "the padding value must be one element, not \(value.shape)")
    }
    return try value.reshaped([])
  }

  /// A run of result places whose sources are evenly spaced.
  private struct Segment {
    var target: Int
    var source: Int
    var step: Int
    var count: Int
  }

  private static func mapped(_ shape: [Int], _ result: [Int], _ before: [Int], _ mode: Mode)
    throws(ApusError) -> CopyPlan
  {
    if result.contains(0) { return CopyPlan(outputShapes: [result], copies: []) }
    let source = CopyPlan.rowMajorStrides(shape)
    let target = CopyPlan.rowMajorStrides(result)
    var copies = [CopyPlan.Copy(input: 0, sizes: [], sourceStrides: [], targetStrides: [])]
    for axis in shape.indices {
      guard shape[axis] > 0, result[axis] <= 1 << 28 else {
        throw ApusError(.typeMismatch, "\(shape) cannot be padded to \(result) by mode \(mode)")
      }
      let parts = segments(shape[axis], result[axis], before[axis], mode)
      guard copies.count <= (1 << 20) / parts.count else {
        throw ApusError(.resourceLimit, "padding \(shape) to \(result) takes too many copies")
      }
      var next: [CopyPlan.Copy] = []
      for copy in copies {
        for part in parts {
          var grown = copy
          grown.sizes.append(part.count)
          grown.sourceOffset += part.source * source[axis]
          grown.targetOffset += part.target * target[axis]
          grown.sourceStrides.append(part.step * source[axis])
          grown.targetStrides.append(target[axis])
          next.append(grown)
        }
      }
      copies = next
    }
    return CopyPlan(outputShapes: [result], copies: copies)
  }

  private static func segments(_ size: Int, _ total: Int, _ before: Int, _ mode: Mode) -> [Segment]
  {
    func place(_ index: Int) -> Int {
      switch mode {
      case .constant, .edge: return min(max(index, 0), size - 1)
      case .wrap: return (index % size + size) % size
      case .reflect:
        if size == 1 { return 0 }
        let period = 2 * (size - 1)
        let phase = (index % period + period) % period
        return phase < size ? phase : period - phase
      }
    }
    var result: [Segment] = []
    for index in 0..<total {
      let source = place(index - before)
      if let last = result.last {
        if last.count == 1 {
          result[result.count - 1].step = source - last.source
          result[result.count - 1].count = 2
          continue
        }
        if source == last.source + last.step * last.count {
          result[result.count - 1].count += 1
          continue
        }
      }
      result.append(Segment(target: index, source: source, step: 0, count: 1))
    }
    return result
  }

  public func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm? {
    let rank = permutation.count
    guard inputs.count > 1, inputs.types[0]?.tensor?.rank == rank,
      Axis.isPermutation(permutation, rank: rank), let pads = inputs.constant(1)?.ints()
    else { return nil }
    let axes = inputs.has(3) ? inputs.constant(3)?.ints() : Array(0..<rank)
    guard let axes, let full = try? Self.full(pads, axes, rank, 0),
      let vector = try? Tensor.vector(
        permutation.map { full[$0].before } + permutation.map { full[$0].after })
    else { return nil }
    var replaced = [1: vector]
    if inputs.has(3) { replaced[3] = try? Tensor.vector(Array(0..<rank)) }
    return PermutedForm(
      op: self, permutesInput: inputs.types.indices.map { $0 == 0 }, replacedInputs: replaced)
  }
}
