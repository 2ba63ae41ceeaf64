// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
import ApusTensor

/// The products for which there are kernels on bytes.
enum IntegerProduct {
  /// The operator on bytes, given the zero point of its left side; nil for what has no kernel on bytes.
  static func form(of node: Node, _ graph: Graph) -> ((Int) -> any Operator)? {
    if let conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast {
      let x = node.inputs[0].flatMap { graph[$0].type.tensor?.dims }
      guard let channels = x?.dropFirst().first?.value, let rank = x?.count, rank <= 4,
        let weights = node.inputs[1].flatMap({ graph[$0].type.tensor?.dims }),
        conv.group == 1 || conv.group < channels || isDepthwise(conv, channels, weights)
      else { return nil }
      return { zero in
        var copy = conv
        copy.sumType = .int32
        copy.padValue = zero
        return copy
      }
    }
    if let product = node.op as? MatMul, product.sumType == nil {
      return { _ in MatMul(sumType: .int32) }
    }
    return nil
  }

  /// The largest window and step down that the kernels on bytes take.
  private static let (mostRows, mostColumns, mostStride) = (7, 16, 4)

  /// Whether every channel has one small window of its own.
  private static func isDepthwise(_ conv: Conv, _ channels: Int, _ weights: [Dim]) -> Bool {
    let window = weights.dropFirst(2).compactMap(\.value)
    guard conv.group == channels, weights.first?.value == channels,
      window.count == weights.count - 2, let columns = window.last
    else { return false }
    let rows = window.count > 1 ? window[0] : 1
    let down = conv.strides.count > 1 ? conv.strides[0] : 1
    return rows <= mostRows && columns <= mostColumns && down <= mostStride
  }
}
