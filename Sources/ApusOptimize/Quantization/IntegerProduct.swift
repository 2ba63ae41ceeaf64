// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps

/// The products for which there are kernels on bytes.
enum IntegerProduct {
  /// The operator on bytes, given the zero point of its left side; nil for what has no kernel on bytes.
  static func form(of node: Node, _ graph: Graph) -> ((Int) -> any Operator)? {
    if let conv = node.op as? Conv, conv.sumType == nil, !conv.isChannelsLast {
      let x = node.inputs[0].flatMap { graph[$0].type.tensor?.dims }
      guard let channels = x?.dropFirst().first?.value, let rank = x?.count, rank <= 4,
        conv.group == 1 || conv.group < channels
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
}
