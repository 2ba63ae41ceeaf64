// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Convolutions and pooling: operators with a sliding window.
  mutating func addConvolution() {
    op("Conv", since: 1) { (node) throws(ApusError) in try node.convolution() }
    op("MaxPool", since: 1) { (node) throws(ApusError) in
      let isColumnMajor = try node.attributes.flag("storage_order", false)
      return MaxPool(try node.pooling(), columnMajorIndices: isColumnMajor)
    }
    op("AveragePool", since: 1) { (node) throws(ApusError) in
      AveragePool(
        try node.pooling(), countIncludePad: try node.attributes.flag("count_include_pad", false))
    }
    op("Col2Im", since: 18) { (node) throws(ApusError) in
      Col2Im(
        strides: try node.attributes.ints("strides", []),
        dilations: try node.attributes.ints("dilations", []),
        pads: try node.attributes.ints("pads", []))
    }
    op("DeformConv", since: 19) { (node) throws(ApusError) in
      let conv = try node.convolution()
      return DeformConv(
        strides: conv.strides, dilations: conv.dilations, pads: conv.pads, group: conv.group,
        offsetGroups: try node.attributes.int("offset_group", 1))
    }
    op("MaxUnpool", since: 9) { (node) throws(ApusError) in
      MaxUnpool(
        kernel: try node.attributes.ints("kernel_shape"),
        strides: try node.attributes.ints("strides", []),
        pads: try node.attributes.ints("pads", []))
    }
    op("LpPool", since: 2) { (node) throws(ApusError) in
      LpPool(try node.pooling(), p: try node.attributes.int("p", 2))
    }
    op("ConvTranspose", since: 1) { (node) throws(ApusError) in
      let conv = try node.convolution()
      return ConvTranspose(
        strides: conv.strides, dilations: conv.dilations, pads: conv.pads, group: conv.group,
        autoPad: conv.autoPad, outputPadding: try node.attributes.ints("output_padding", []),
        outputShape: try node.attributes.ints("output_shape", []))
    }
    // The mean, largest or p-norm over all spatial axes.
    addGlobal("GlobalAveragePool", .mean)
    addGlobal("GlobalMaxPool", .max)
    on("GlobalLpPool", since: 2) { (node) throws(ApusError) in
      switch try node.attributes.int("p", 2) {
      case 1: return try node.globalReduce(.l1)
      case 2: return try node.globalReduce(.l2)
      case let p: throw ApusError(.notYetSupported, "GlobalLpPool with p = \(p)")
      }
    }
  }

  private mutating func addGlobal(_ name: String, _ function: Reduce.Function) {
    on(name, since: 1) { (node) throws(ApusError) in try node.globalReduce(function) }
  }
}

/// The attributes that all sliding windows share; empty lists mean the defaults.
struct WindowAttributes {
  var kernel: [Int]
  var strides: [Int]
  var dilations: [Int]
  var pads: [Int]
  var autoPad: AutoPad
}

extension NodeImport {
  /// Reads the window.
  func window() throws(ApusError) -> WindowAttributes {
    let mode = try attributes.string("auto_pad", "NOTSET")
    let autoPad: AutoPad
    switch mode {
    case "NOTSET", "": autoPad = .notset
    case "VALID": autoPad = .valid
    case "SAME_UPPER": autoPad = .sameUpper
    case "SAME_LOWER": autoPad = .sameLower
    default:
      throw ApusError(
        .invalidAttribute, "'auto_pad' is '\(mode)', not NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    }
    return WindowAttributes(
      kernel: try attributes.ints("kernel_shape", []), strides: try attributes.ints("strides", []),
      dilations: try attributes.ints("dilations", []), pads: try attributes.ints("pads", []),
      autoPad: autoPad)
  }

  /// A convolution; the kernel's size is its weights'.
  func convolution(weights: Int = 1) throws(ApusError) -> Conv {
    try convolution(weights: try operand(weights))
  }

  func convolution(weights: ValueID) throws(ApusError) -> Conv {
    let window = try window()
    if !window.kernel.isEmpty, case .tensor(let type) = type(of: weights), let dims = type.dims {
      let sizes = dims.dropFirst(2).map(\.value)
      guard sizes.count == window.kernel.count,
        zip(sizes, window.kernel).allSatisfy({ $0 == nil || $0 == $1 })
      else {
        throw ApusError(
          .invalidAttribute, "'kernel_shape' is \(window.kernel), the weights are \(dims)")
      }
    }
    return Conv(
      strides: window.strides, dilations: window.dilations, pads: window.pads,
      group: try attributes.int("group", 1), autoPad: window.autoPad)
  }

  /// The attributes of a pooling operator.
  func pooling() throws(ApusError) -> PoolAttributes {
    let window = try window()
    guard !window.kernel.isEmpty else {
      throw ApusError(.invalidAttribute, "attribute 'kernel_shape' is missing")
    }
    return PoolAttributes(
      kernel: window.kernel, strides: window.strides, pads: window.pads,
      dilations: window.dilations, autoPad: window.autoPad,
      ceilMode: try attributes.flag("ceil_mode", false))
  }

  /// A reduction over all axes after the first two.
  fileprivate func globalReduce(_ function: Reduce.Function) throws(ApusError) -> [ValueID] {
    let rank = try rank(0)
    guard rank >= 2 else {
      throw ApusError(.typeMismatch, "the operand has rank \(rank), at least 2 is needed")
    }
    if rank == 2 { return try result(Identity(), [try operand(0)]) }
    return try result(
      Reduce(function: function, axes: Array(2..<rank), keepDims: true), [try operand(0)])
  }
}
