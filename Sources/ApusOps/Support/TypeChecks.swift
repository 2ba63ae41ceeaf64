// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

extension InferenceInputs {
  /// Fails unless operand `index` holds floating-point numbers.
  func requireFloat(_ index: Int) throws(ApusError) {
    let type = try tensor(index)
    guard type.dataType.isFloat else {
      throw ApusError(.typeMismatch, "operand \(index) is \(type), expected floating-point numbers")
    }
  }

  /// Fails unless operand `index` holds real numbers.
  func requireNumbers(_ index: Int) throws(ApusError) {
    let type = try tensor(index)
    guard type.dataType.isFloat || type.dataType.isInteger else {
      throw ApusError(.typeMismatch, "operand \(index) is \(type), expected numbers")
    }
  }

  /// Fails unless operand `index` is omitted or holds real numbers.
  func requireNumbers(ifGiven index: Int) throws(ApusError) {
    if has(index) { try requireNumbers(index) }
  }
}
