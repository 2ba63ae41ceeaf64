// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Sequences and optional values.
  mutating func addSequences() {
    op("SequenceConstruct", since: 11) { _ in SequenceConstruct() }
    op("SequenceEmpty", since: 11) { (node) throws(ApusError) in
      SequenceEmpty(dataType: try node.attributes.dataType("dtype") ?? .float32)
    }
    op("SequenceAt", since: 11) { _ in SequenceAt() }
    op("SequenceInsert", since: 11) { _ in SequenceInsert() }
    op("SequenceErase", since: 11) { _ in SequenceErase() }
    op("SequenceLength", since: 11) { _ in SequenceLength() }
    op("ConcatFromSequence", since: 11) { (node) throws(ApusError) in
      ConcatFromSequence(
        axis: try node.attributes.int("axis"), newAxis: try node.attributes.flag("new_axis", false))
    }
    op("SplitToSequence", since: 11) { (node) throws(ApusError) in
      let keepDims = try node.attributes.flag("keepdims", true)
      // With sizes given, every part keeps its axis.
      return SplitToSequence(
        axis: try node.attributes.int("axis", 0), keepDims: keepDims || node.optional(1) != nil)
    }
    op("Optional", since: 15) { (node) throws(ApusError) in
      OptionalConstruct(type: try node.attributes.type("type"))
    }
    op("OptionalGetElement", since: 15) { _ in OptionalGetElement() }
    op("OptionalHasElement", since: 15) { _ in OptionalHasElement() }
    on("SequenceMap", since: 17) { (node) throws(ApusError) in try node.sequenceMap() }
  }
}
