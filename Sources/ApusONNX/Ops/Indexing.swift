// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Gathering, scattering, searching and sorting.
  mutating func addIndexing() {
    op("Gather", since: 1) { (node) throws(ApusError) in
      Gather(axis: try node.attributes.int("axis", 0))
    }
    op("GatherElements", since: 11) { (node) throws(ApusError) in
      GatherElements(axis: try node.attributes.int("axis", 0))
    }
    op("GatherND", since: 11) { (node) throws(ApusError) in
      GatherND(batchDims: try node.attributes.int("batch_dims", 0))
    }
    op("Scatter", since: 9) { (node) throws(ApusError) in
      ScatterElements(axis: try node.attributes.int("axis", 0))
    }
    op("ScatterElements", since: 11) { (node) throws(ApusError) in
      ScatterElements(
        axis: try node.attributes.int("axis", 0), reduction: try node.scatterReduction())
    }
    op("ScatterND", since: 11) { (node) throws(ApusError) in
      ScatterND(reduction: try node.scatterReduction())
    }
    op("NonZero", since: 9) { _ in NonZero() }
    op("Compress", since: 9) { (node) throws(ApusError) in
      Compress(axis: try node.attributes.optionalInt("axis"))
    }
    op("Unique", since: 11) { (node) throws(ApusError) in
      Unique(
        axis: try node.attributes.optionalInt("axis"),
        sorted: try node.attributes.flag("sorted", true))
    }
    op("OneHot", since: 9) { (node) throws(ApusError) in
      OneHot(axis: try node.attributes.int("axis", -1))
    }
    op("Trilu", since: 14) { (node) throws(ApusError) in
      Trilu(upper: try node.attributes.flag("upper", true))
    }
    op("CumSum", since: 11) { (node) throws(ApusError) in
      CumSum(
        exclusive: try node.attributes.flag("exclusive", false),
        reverse: try node.attributes.flag("reverse", false))
    }
    op("ReverseSequence", since: 10) { (node) throws(ApusError) in
      ReverseSequence(
        batchAxis: try node.attributes.int("batch_axis", 1),
        timeAxis: try node.attributes.int("time_axis", 0))
    }
    addSelection()
  }

  private mutating func addSelection() {
    on("TopK", since: 1) { (node) throws(ApusError) in
      let count = try node.vector([try node.attributes.int("k")])
      return try node.result(
        TopK(axis: try node.attributes.int("axis", -1)), [try node.operand(0), count])
    }
    op("TopK", since: 10) { (node) throws(ApusError) in
      TopK(
        axis: try node.attributes.int("axis", -1),
        largest: try node.attributes.flag("largest", true),
        sorted: try node.attributes.flag("sorted", true))
    }
    op("ArgMax", since: 1) { (node) throws(ApusError) in
      ArgMax(
        axis: try node.attributes.int("axis", 0),
        keepDims: try node.attributes.flag("keepdims", true),
        selectLastIndex: try node.attributes.flag("select_last_index", false))
    }
    op("ArgMin", since: 1) { (node) throws(ApusError) in
      ArgMin(
        axis: try node.attributes.int("axis", 0),
        keepDims: try node.attributes.flag("keepdims", true),
        selectLastIndex: try node.attributes.flag("select_last_index", false))
    }
  }
}

extension NodeImport {
  /// How scattered elements meet those already there.
  fileprivate func scatterReduction() throws(ApusError) -> ScatterReduction {
    let text = try attributes.string("reduction", "none")
    guard let reduction = ScatterReduction(rawValue: text) else {
      throw ApusError(
        .invalidAttribute, "'reduction' is '\(text)', not none, add, mul, max or min")
    }
    return reduction
  }
}
