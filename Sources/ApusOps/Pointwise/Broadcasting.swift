// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Multidirectional broadcasting: shapes are aligned at the last axis and sizes of one repeat.
package enum Broadcasting {
  /// The common shape.
  ///
  /// - Throws: `type-mismatch` naming the operands when two sizes differ and neither is one.
  package static func shape(_ shapes: [[Int]]) throws(ApusError) -> [Int] {
    let rank = shapes.map(\.count).max() ?? 0
    var result = Array(repeating: 1, count: rank)
    for shape in shapes {
      let shift = rank - shape.count
      for (axis, size) in shape.enumerated() {
        if result[axis + shift] == 1 {
          result[axis + shift] = size
        } else if size != 1, size != result[axis + shift] {
          throw mismatch(shapes.map { "\($0)" })
        }
      }
    }
    _ = try Tensor.checkedCount(result)
    return result
  }

  /// The common shape of shapes with symbols: equal sizes stay, one yields to the other size, and
  /// of a known size and a symbol the known one is taken.
  package static func dims(_ shapes: [[Dim]]) throws(ApusError) -> [Dim] {
    let rank = shapes.map(\.count).max() ?? 0
    var result = Array(repeating: Dim(1), count: rank)
    for shape in shapes {
      let shift = rank - shape.count
      for (axis, dim) in shape.enumerated() {
        let have = result[axis + shift]
        if have == dim || dim == 1 { continue }
        if have == 1 {
          result[axis + shift] = dim
        } else if let known = dim.value {
          guard have.value == nil || have.value == known else {
            throw mismatch(shapes.map { "\($0)" })
          }
          result[axis + shift] = dim
        }
      }
    }
    return result
  }

  private static func mismatch(_ shapes: [String]) -> ApusError {
    let list = shapes.enumerated().map { "operand \($0.offset) \($0.element)" }
    return ApusError(
      .typeMismatch, "shapes cannot be broadcast together: \(list.joined(separator: ", "))",
      hint: "sizes must be equal or one, counted from the last axis")
  }

  /// The strides that walk a dense tensor of shape `shape` as if it had shape `target`.
  package static func strides(_ shape: [Int], to target: [Int]) -> [Int] {
    let own = CopyPlan.rowMajorStrides(shape)
    let shift = target.count - shape.count
    return target.indices.map { axis in
      axis < shift || shape[axis - shift] == 1 ? 0 : own[axis - shift]
    }
  }

  /// The elements of a dense array of shape `shape` repeated to shape `target`.
  package static func expand<Element>(_ values: [Element], _ shape: [Int], to target: [Int])
    -> [Element]
  {
    let count = target.reduce(1, &*)
    if values.count == count || count == 0 { return count == 0 ? [] : values }
    if values.count == 1 { return Array(repeating: values[0], count: count) }
    let strides = strides(shape, to: target)
    var result: [Element] = []
    result.reserveCapacity(count)
    func walk(_ axis: Int, _ offset: Int) {
      let size = target[axis]
      let stride = strides[axis]
      if axis == target.count - 1 {
        if stride == 1 {
          result.append(contentsOf: values[offset..<(offset + size)])
        } else {
          result.append(contentsOf: repeatElement(values[offset], count: size))
        }
        return
      }
      for index in 0..<size { walk(axis + 1, offset + index * stride) }
    }
    walk(0, 0)
    return result
  }

  /// The elements of a tensor in reference form, repeated to shape `target`.
  package static func broadcastElements(_ tensor: Tensor, to target: [Int])
    -> ScalarEvaluator.Elements
  {
    switch ScalarEvaluator.elements(of: tensor) {
    case .real(let values, let type): .real(expand(values, tensor.shape, to: target), type)
    case .whole(let values, let type): .whole(expand(values, tensor.shape, to: target), type)
    }
  }
}
