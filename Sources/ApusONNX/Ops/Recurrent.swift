// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Recurrent networks.
  mutating func addRecurrent() {
    op("LSTM", since: 7) { (node) throws(ApusError) in
      LSTM(
        try node.recurrent(), inputForget: try node.attributes.flag("input_forget", false))
    }
    op("GRU", since: 7) { (node) throws(ApusError) in
      GRU(
        try node.recurrent(),
        linearBeforeReset: try node.attributes.flag("linear_before_reset", false))
    }
    op("RNN", since: 7) { (node) throws(ApusError) in RNN(try node.recurrent()) }
  }
}

extension NodeImport {
  fileprivate func recurrent() throws(ApusError) -> RecurrentAttributes {
    let text = try attributes.string("direction", "forward")
    guard let direction = RecurrentAttributes.Direction(rawValue: text) else {
      throw ApusError(
        .invalidAttribute, "'direction' is '\(text)', not forward, reverse or bidirectional")
    }
    var hiddenSize = try attributes.optionalInt("hidden_size")
    if hiddenSize == nil, let dims = try tensorType(2).dims { hiddenSize = dims.last?.value }
    guard let hiddenSize, hiddenSize > 0 else {
      throw ApusError(.invalidAttribute, "attribute 'hidden_size' is missing")
    }
    return RecurrentAttributes(
      hiddenSize: hiddenSize, direction: direction,
      activations: try attributes.strings("activations", []),
      activationAlpha: try attributes.floats("activation_alpha", []),
      activationBeta: try attributes.floats("activation_beta", []),
      clip: try attributes.float("clip", 0), layout: try attributes.int("layout", 0))
  }
}
