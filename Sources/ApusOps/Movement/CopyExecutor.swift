// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Runs copy plans on tensors of any element type, one element after another.
package enum CopyExecutor {
  /// The results of a plan; every result has the type of the moved operands.
  ///
  /// - Throws: `type-mismatch` when the operands have different types, `internal` when a copy
  ///   leaves its operand or result.
  package static func run(_ plan: CopyPlan, _ inputs: [Tensor?], _ dataType: DataType)
    throws(ApusError) -> [Tensor]
  {
    var buffers: [ElementBuffer] = []
    for shape in plan.outputShapes {
      var buffer = try ElementBuffer(dataType, shape: shape)
      if let fill = plan.fill {
        guard fill.dataType == dataType, fill.count == 1 else {
          throw ApusError(.typeMismatch, "the fill value \(fill.type) is no single \(dataType)")
        }
        buffer.copy(from: fill, count: try Tensor.checkedCount(shape)) { ($0, 0) }
      }
      buffers.append(buffer)
    }
    for copy in plan.simplified().copies {
      guard let source = inputs.at(copy.input), source.dataType == dataType else {
        throw ApusError(
          .typeMismatch, "operand \(copy.input) must have elements of type \(dataType)")
      }
      guard buffers.indices.contains(copy.output),
        inside(copy.sizes, copy.sourceOffset, copy.sourceStrides, source.count),
        inside(
          copy.sizes, copy.targetOffset, copy.targetStrides,
          plan.outputShapes[copy.output].reduce(1, &*))
      else {
        throw ApusError(.internalError, "a copy leaves its operand or result: \(copy)")
      }
      run(copy, source, &buffers[copy.output])
    }
    var results: [Tensor] = []
    for buffer in buffers { results.append(try buffer.finished()) }
    return results
  }

  private static func inside(_ sizes: [Int], _ offset: Int, _ strides: [Int], _ count: Int) -> Bool
  {
    guard strides.count == sizes.count else { return false }
    var low = offset
    var high = offset
    for (size, stride) in zip(sizes, strides) {
      let (reach, overflow) = (size - 1).multipliedReportingOverflow(by: stride)
      if overflow { return false }
      if reach < 0 { low &+= reach } else { high &+= reach }
    }
    return low >= 0 && high < count
  }

  private static func run(_ copy: CopyPlan.Copy, _ source: Tensor, _ buffer: inout ElementBuffer) {
    let rank = copy.sizes.count
    let inner = rank == 0 ? 1 : copy.sizes[rank - 1]
    let sourceStep = rank == 0 ? 0 : copy.sourceStrides[rank - 1]
    let targetStep = rank == 0 ? 0 : copy.targetStrides[rank - 1]
    var position = Array(repeating: 0, count: max(0, rank - 1))
    var from = copy.sourceOffset
    var to = copy.targetOffset
    let outer = copy.sizes.dropLast().reduce(1, &*)
    for _ in 0..<outer {
      if sourceStep == 1, targetStep == 1 {
        buffer.copyRuns(from: source, length: inner, count: 1) { _ in (to, from) }
      } else {
        buffer.copy(from: source, count: inner) { (to + $0 * targetStep, from + $0 * sourceStep) }
      }
      for axis in position.indices.reversed() {
        position[axis] += 1
        from += copy.sourceStrides[axis]
        to += copy.targetStrides[axis]
        if position[axis] < copy.sizes[axis] { break }
        from -= copy.sourceStrides[axis] * copy.sizes[axis]
        to -= copy.targetStrides[axis] * copy.sizes[axis]
        position[axis] = 0
      }
    }
  }
}

extension MovementOperator {
  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let tensors = try inputs.allTensors()
    guard let first = tensors.at(0) else {
      throw ApusError(.typeMismatch, "operand 0 is missing")
    }
    let plan = try copyPlan(tensors, shapes: tensors.map { $0?.shape })
    return try CopyExecutor.run(plan, tensors, first.dataType).map { .tensor($0) }
  }

  public func movedInputs(count: Int) -> [Int] { [0] }
}

extension Array where Element == [Int]? {
  /// The shape at position `index`.
  func required(_ index: Int) throws(ApusError) -> [Int] {
    guard index < count, let shape = self[index] else {
      throw ApusError(.typeMismatch, "operand \(index) is missing")
    }
    return shape
  }
}

extension Array where Element == Tensor? {
  /// The elements of a required integer parameter.
  func parameter(_ index: Int, _ what: String) throws(ApusError) -> [Int] {
    guard let values = try optionalParameter(index, what) else {
      throw ApusError(.typeMismatch, "the value of operand \(index) (\(what)) is needed")
    }
    return values
  }

  /// The elements of an integer parameter, nil when omitted.
  func optionalParameter(_ index: Int, _ what: String) throws(ApusError) -> [Int]? {
    guard let tensor = at(index) else { return nil }
    guard tensor.dataType.isInteger else {
      throw ApusError(.typeMismatch, "\(what) must be integers, not \(tensor.dataType)")
    }
    return tensor.ints()
  }
}

/// A copy of a whole dense operand into a whole dense result of the same number of elements.
func wholeCopy(_ from: [Int], as to: [Int]) throws(ApusError) -> CopyPlan {
  let count = try Tensor.checkedCount(from)
  guard try Tensor.checkedCount(to) == count else {
    throw ApusError(.typeMismatch, "\(from) has \(count) elements and cannot become \(to)")
  }
  return CopyPlan(
    outputShapes: [to],
    copies: [CopyPlan.Copy(input: 0, sizes: [count], sourceStrides: [1], targetStrides: [1])])
}
