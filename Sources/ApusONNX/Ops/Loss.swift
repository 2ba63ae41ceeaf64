// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Losses, which exported training graphs hold.
  mutating func addLosses() {
    op("NegativeLogLikelihoodLoss", since: 12) { (node) throws(ApusError) in try node.loss() }
    on("SoftmaxCrossEntropyLoss", since: 12) { (node) throws(ApusError) in
      let loss = try node.loss()
      let logarithms = try node.emit(LogSoftmax(axis: 1), [try node.operand(0)])
      let result = try node.emit(
        loss, [logarithms, try node.operand(1), node.optional(2)])
      return [result, logarithms]
    }
  }
}

extension NodeImport {
  fileprivate func loss() throws(ApusError) -> NegativeLogLikelihoodLoss {
    NegativeLogLikelihoodLoss(
      reduction: try choice("reduction", NegativeLogLikelihoodLoss.Reduction.mean),
      ignoredClass: try attributes.optionalInt("ignore_index"))
  }
}
