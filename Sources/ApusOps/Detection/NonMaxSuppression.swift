// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The best boxes that do not overlap too much (ONNX `NonMaxSuppression`): operands boxes
/// `[batch, count, 4]`, scores `[batch, classes, count]`, and optionally the largest number of boxes
/// a class, the overlap above which a box is dropped, and the score below which it is.
///
/// The result has rows of batch, class and box number.
public struct NonMaxSuppression: DataDependentShape {
  public static let name = "NonMaxSuppression"
  /// Whether boxes are centre and size instead of two opposite corners.
  public var centerPointBox: Bool

  /// Creates the operator.
  public init(centerPointBox: Bool = false) { self.centerPointBox = centerPointBox }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    centerPointBox = try attributes.bool("center_point_box", false)
  }

  public var attributes: Attributes { ["center_point_box": .bool(centerPointBox)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { Array(0..<count) }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let boxes = try inputs.tensor(0)
    let scores = try inputs.tensor(1)
    guard boxes.dataType.isFloat, scores.dataType.isFloat else {
      throw ApusError(.typeMismatch, "boxes \(boxes) and scores \(scores)")
    }
    if let b = boxes.dims, let s = scores.dims {
      func agree(_ x: Dim, _ y: Dim) -> Bool { x.value == nil || y.value == nil || x == y }
      guard b.count == 3, s.count == 3, agree(b[2], 4), agree(b[0], s[0]), agree(b[1], s[2]) else {
        throw ApusError(.typeMismatch, "boxes \(boxes) and scores \(scores) do not fit")
      }
    }
    return [typed(.int64, [inputs.freshDim("selected"), 3])]
  }

  private struct Box {
    let top: Float
    let left: Float
    let bottom: Float
    let right: Float

    var area: Float { (bottom - top) * (right - left) }

    func overlaps(_ other: Box, above threshold: Float) -> Bool {
      let height = min(bottom, other.bottom) - max(top, other.top)
      let width = min(right, other.right) - max(left, other.left)
      guard height > 0, width > 0, area > 0, other.area > 0 else { return false }
      let common = height * width
      return common / (area + other.area - common) > threshold
    }
  }

  private func box(_ v: ArraySlice<Float>) -> Box {
    let (a, b, c, d) = (v[v.startIndex], v[v.startIndex + 1], v[v.startIndex + 2], v[v.startIndex + 3])
    if centerPointBox {
      return Box(top: b - d / 2, left: a - c / 2, bottom: b + d / 2, right: a + c / 2)
    }
    return Box(top: min(a, c), left: min(b, d), bottom: max(a, c), right: max(b, d))
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let boxes = try inputs.required(0)
    let scores = try inputs.required(1)
    let limit = try inputs.optional(2)?.integers().first ?? 0
    let overlap = try inputs.optional(3)?.floats().first ?? 0
    let lowest = try inputs.optional(4)?.floats().first
    let count = boxes.shape[1]
    let corners = boxes.floats()
    let values = scores.floats()
    let classes = scores.shape[1]
    var rows: [Int64] = []
    for batch in 0..<boxes.shape[0] where limit > 0 {
      let all = (0..<count).map { index in
        let start = (batch * count + index) * 4
        return box(corners[start..<(start + 4)])
      }
      for label in 0..<classes {
        let base = (batch * classes + label) * count
        var candidates = (0..<count).filter { index in
          lowest.map { values[base + index] > $0 } ?? true
        }
        candidates.sort {
          values[base + $0] != values[base + $1]
            ? values[base + $0] > values[base + $1] : $0 < $1
        }
        var chosen: [Int] = []
        for candidate in candidates {
          if Int64(chosen.count) == limit { break }
          if chosen.contains(where: { all[$0].overlaps(all[candidate], above: overlap) }) { continue }
          chosen.append(candidate)
          rows += [Int64(batch), Int64(label), Int64(candidate)]
        }
      }
    }
    return [.tensor(try Tensor(rows, .int64, shape: [rows.count / 3, 3]))]
  }
}
