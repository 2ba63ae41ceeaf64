// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Operators that reorder, cut, join or repeat elements.
  mutating func addMovement() {
    op("Identity", since: 1) { _ in Identity() }
    op("Transpose", since: 1) { (node) throws(ApusError) in
      Transpose(permutation: try node.attributes.optionalInts("perm"))
    }
    op("Reshape", since: 5) { (node) throws(ApusError) in
      Reshape(allowZero: try node.attributes.flag("allowzero", false))
    }
    op("Flatten", since: 1) { (node) throws(ApusError) in
      Flatten(axis: try node.attributes.int("axis", 1))
    }
    on("Squeeze", since: 1) { (node) throws(ApusError) in
      let axes = try node.attributes.optionalInts("axes")
      let operand = try axes.map { (axes) throws(ApusError) in try node.vector(axes) }
      return try node.result(Squeeze(), [try node.operand(0), operand])
    }
    op("Squeeze", since: 13) { _ in Squeeze() }
    on("Unsqueeze", since: 1) { (node) throws(ApusError) in
      try node.result(
        Unsqueeze(), [try node.operand(0), try node.vector(try node.attributes.ints("axes"))])
    }
    op("Unsqueeze", since: 13) { _ in Unsqueeze() }
    op("Concat", since: 4) { (node) throws(ApusError) in
      Concat(axis: try node.attributes.int("axis"))
    }
    op("Expand", since: 8) { _ in Expand() }
    op("Tile", since: 6) { _ in Tile() }
    op("DepthToSpace", since: 1) { (node) throws(ApusError) in
      let mode = try node.attributes.string("mode", "DCR")
      guard mode == "DCR" || mode == "CRD" else {
        throw ApusError(.invalidAttribute, "'mode' is '\(mode)', not DCR or CRD")
      }
      return DepthToSpace(
        blockSize: try node.attributes.int("blocksize"), mode: mode == "DCR" ? .dcr : .crd)
    }
    op("SpaceToDepth", since: 1) { (node) throws(ApusError) in
      let mode = try node.attributes.string("mode", "DCR")
      guard mode == "DCR" || mode == "CRD" else {
        throw ApusError(.invalidAttribute, "'mode' is '\(mode)', not DCR or CRD")
      }
      return SpaceToDepth(
        blockSize: try node.attributes.int("blocksize"), mode: mode == "DCR" ? .dcr : .crd)
    }
    addSlices()
    addPadding()
  }

  private mutating func addSlices() {
    on("Slice", since: 1) { (node) throws(ApusError) in
      let starts = try node.attributes.ints("starts")
      let ends = try node.attributes.ints("ends")
      let axes = try node.attributes.ints("axes", Array(starts.indices))
      return try node.result(
        Slice(),
        [
          try node.operand(0), try node.vector(starts), try node.vector(ends),
          try node.vector(axes),
        ])
    }
    op("Slice", since: 10) { _ in Slice() }
    on("Split", since: 2) { (node) throws(ApusError) in
      let axis = try node.attributes.int("axis", 0)
      let sizes = try node.attributes.optionalInts("split")
      let operand = try sizes.map { (sizes) throws(ApusError) in try node.vector(sizes) }
      let count = sizes == nil ? node.outputCount : nil
      return try node.result(
        Split(axis: axis, numOutputs: count), [try node.operand(0), operand])
    }
    op("Split", since: 13) { (node) throws(ApusError) in
      Split(
        axis: try node.attributes.int("axis", 0),
        numOutputs: node.optional(1) == nil ? node.outputCount : nil)
    }
    op("Split", since: 18) { (node) throws(ApusError) in
      let count = try node.attributes.optionalInt("num_outputs")
      return Split(
        axis: try node.attributes.int("axis", 0),
        numOutputs: node.optional(1) == nil ? count ?? node.outputCount : nil)
    }
  }

  private mutating func addPadding() {
    @Sendable func mode(_ node: NodeImport) throws(ApusError) -> Pad.Mode {
      let text = try node.attributes.string("mode", "constant")
      guard let mode = Pad.Mode(rawValue: text) else {
        throw ApusError(
          .invalidAttribute, "'mode' is '\(text)', not constant, reflect, edge or wrap")
      }
      return mode
    }
    on("Pad", since: 2) { (node) throws(ApusError) in
      let type = try node.tensorType(0).dataType
      let value = try node.scalar(try node.attributes.float("value", 0), type)
      let pads = try node.vector(try node.attributes.ints("pads"))
      return try node.result(Pad(mode: try mode(node)), [try node.operand(0), pads, value])
    }
    op("Pad", since: 11) { (node) throws(ApusError) in Pad(mode: try mode(node)) }
  }
}
