// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// An operator that can compute single elements of its first result, so that kernels on large
/// problems are checked without the time of a whole reference run.
public protocol SampledOperator: Operator {
  /// Whether this value of the operator can do so.
  var canSample: Bool { get }
  /// The elements of result 0 at these row-major positions.
  ///
  /// - Throws: what `evaluate` throws, and `invalid-argument` for positions outside the result.
  func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError) -> [Double]
}

extension SampledOperator {
  public var canSample: Bool { true }
}
