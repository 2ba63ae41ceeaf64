// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// What a data movement operator does: strided copies from operands to results, over results that
/// may first be filled.
public struct CopyPlan: Sendable {
  /// One n-dimensional strided copy. Offsets and strides are in elements; strides may be zero
  /// (repetition) or negative (reversal).
  public struct Copy: Sendable, Hashable {
    public var input: Int
    public var output: Int
    public var sizes: [Int]
    public var sourceOffset: Int
    public var sourceStrides: [Int]
    public var targetOffset: Int
    public var targetStrides: [Int]

    /// Creates a copy.
    public init(
      input: Int, output: Int = 0, sizes: [Int], sourceOffset: Int = 0, sourceStrides: [Int],
      targetOffset: Int = 0, targetStrides: [Int]
    ) {
      self.input = input
      self.output = output
      self.sizes = sizes
      self.sourceOffset = sourceOffset
      self.sourceStrides = sourceStrides
      self.targetOffset = targetOffset
      self.targetStrides = targetStrides
    }
  }

  /// The shapes of the results.
  public var outputShapes: [[Int]]
  /// The copies.
  public var copies: [Copy]
  /// One element (as the bytes of a scalar tensor) that fills result 0 where nothing is copied;
  /// nil when the copies cover every result.
  public var fill: Tensor?

  /// Creates a plan.
  public init(outputShapes: [[Int]], copies: [Copy], fill: Tensor? = nil) {
    self.outputShapes = outputShapes
    self.copies = copies
    self.fill = fill
  }

  /// The strides of a dense row-major shape.
  public static func rowMajorStrides(_ shape: [Int]) -> [Int] {
    var strides = Array(repeating: 1, count: shape.count)
    for axis in shape.indices.dropLast().reversed() {
      strides[axis] = strides[axis + 1] &* shape[axis + 1]
    }
    return strides
  }

  /// Drops axes of size one and joins neighbouring axes that both sides walk contiguously, so that
  /// an executor sees the fewest, longest axes.
  public func simplified() -> CopyPlan {
    var plan = self
    plan.copies = copies.compactMap(Self.simplified)
    return plan
  }

  private static func simplified(_ copy: Copy) -> Copy? {
    if copy.sizes.contains(0) { return nil }
    var sizes: [Int] = []
    var source: [Int] = []
    var target: [Int] = []
    for axis in copy.sizes.indices where copy.sizes[axis] != 1 {
      let size = copy.sizes[axis]
      if let last = sizes.indices.last, source[last] == copy.sourceStrides[axis] &* size,
        target[last] == copy.targetStrides[axis] &* size
      {
        sizes[last] &*= size
        source[last] = copy.sourceStrides[axis]
        target[last] = copy.targetStrides[axis]
      } else {
        sizes.append(size)
        source.append(copy.sourceStrides[axis])
        target.append(copy.targetStrides[axis])
      }
    }
    var result = copy
    result.sizes = sizes
    result.sourceStrides = source
    result.targetStrides = target
    return result
  }
}
