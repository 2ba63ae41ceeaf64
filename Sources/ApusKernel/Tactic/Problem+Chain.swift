// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension Problem {
  /// The problems of a chain's operators.
  ///
  /// - Throws: `internal` when the operator is no chain or a size is open.
  public func stages() throws(ApusError) -> [Problem] {
    guard let chain = op as? Chain, outputs.count == 1 else {
      throw ApusError(.internalError, "\(op.name) is no chain")
    }
    let results = try chain.resultTypes(inputs: inputTypes)
    var stages: [Problem] = []
    var first = inputs.first ?? nil
    for (index, result) in results.enumerated() {
      guard let shape = result.shape else {
        throw ApusError(.internalError, "the size of a result within a chain is open: \(result)")
      }
      let operand = Operand(dataType: result.dataType, shape: shape, constant: nil)
      stages.append(
        Problem(
          op: chain.stages[index], inputs: [first] + inputs[chain.operands(of: index)],
          outputs: [operand]))
      first = operand
    }
    return stages
  }
}
