// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Signals, bits and running products.
  mutating func addSignal() {
    on("DFT", since: 17) { (node) throws(ApusError) in
      let op = DFT(
        isInverse: try node.attributes.flag("inverse", false),
        isOneSided: try node.attributes.flag("onesided", false),
        axis: try node.attributes.int("axis", 1))
      return try node.result(op, [try node.operand(0), node.optional(1)])
    }
    op("DFT", since: 20) { (node) throws(ApusError) in
      DFT(
        isInverse: try node.attributes.flag("inverse", false),
        isOneSided: try node.attributes.flag("onesided", false))
    }
    op("BitCast", since: 26) { (node) throws(ApusError) in
      guard let type = try node.attributes.dataType("to") else {
        throw ApusError(.invalidAttribute, "attribute 'to' is missing")
      }
      return BitCast(to: type)
    }
    op("CumProd", since: 26) { (node) throws(ApusError) in
      CumSum(
        exclusive: try node.attributes.flag("exclusive", false),
        reverse: try node.attributes.flag("reverse", false), multiplies: true)
    }
    op("CenterCropPad", since: 18) { (node) throws(ApusError) in
      CenterCropPad(axes: try node.attributes.optionalInts("axes"))
    }
  }
}
