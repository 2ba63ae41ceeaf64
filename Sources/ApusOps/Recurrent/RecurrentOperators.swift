// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Long short-term memory (ONNX `LSTM`): operands X, W, R, B?, sequence_lens?, initial_h?, initial_c?,
/// P?; results Y, Y_h, Y_c. Gates in the order input, output, forget, cell.
public struct LSTM: CostedOperator {
  public static let name = "LSTM"
  /// The functions of gates, candidates and results.
  static let activations = ["Sigmoid", "Tanh", "Tanh"]
  public var recurrent: RecurrentAttributes
  /// Whether the forget gate is one minus the input gate.
  public var inputForget: Bool

  /// Whether it is a cell that kernels take.
  public var isPlain: Bool { !inputForget && recurrent.isPlain(Self.activations) }

  /// Creates the operator.
  public init(_ recurrent: RecurrentAttributes, inputForget: Bool = false) {
    self.recurrent = recurrent
    self.inputForget = inputForget
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    recurrent = try RecurrentAttributes(reading: &attributes)
    inputForget = try attributes.bool("input_forget", false)
  }

  public var attributes: Attributes {
    var result = recurrent.attributes
    result["input_forget"] = .bool(inputForget)
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try recurrent.infer(inputs, gates: 4, stateCount: 2)
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    RecurrentRun.operations(inputs, outputs, gates: 4)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var run = try RecurrentRun(
      recurrent, inputs, gates: 4, defaults: Self.activations, peephole: true)
    let inputForget = inputForget
    return try run.evaluate(withCell: true) { state in
      let n = state.hidden
      for i in 0..<n {
        let c = state.cell[i]
        let input = state.f(state.gate(0, i) + state.peephole(0, i) * c)
        let forget = inputForget ? 1 - input : state.f(state.gate(2, i) + state.peephole(2, i) * c)
        let new = forget * c + input * state.g(state.gate(3, i))
        let output = state.f(state.gate(1, i) + state.peephole(1, i) * new)
        state.newCell[i] = new
        state.newHidden[i] = output * state.h(new)
      }
    }
  }
}

/// Gated recurrent unit (ONNX `GRU`): operands X, W, R, B?, sequence_lens?, initial_h?; results Y, Y_h.
/// Gates in the order update, reset, hidden.
public struct GRU: CostedOperator {
  public static let name = "GRU"
  /// The functions of gates and candidates.
  static let activations = ["Sigmoid", "Tanh"]
  public var recurrent: RecurrentAttributes
  /// Whether the reset gate applies after the product with R instead of before.
  public var linearBeforeReset: Bool

  /// Whether it is a cell that kernels take.
  public var isPlain: Bool { recurrent.isPlain(Self.activations) }

  /// Creates the operator.
  public init(_ recurrent: RecurrentAttributes, linearBeforeReset: Bool = false) {
    self.recurrent = recurrent
    self.linearBeforeReset = linearBeforeReset
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    recurrent = try RecurrentAttributes(reading: &attributes)
    linearBeforeReset = try attributes.bool("linear_before_reset", false)
  }

  public var attributes: Attributes {
    var result = recurrent.attributes
    result["linear_before_reset"] = .bool(linearBeforeReset)
    return result
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try recurrent.infer(inputs, gates: 3, stateCount: 1)
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    RecurrentRun.operations(inputs, outputs, gates: 3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var run = try RecurrentRun(
      recurrent, inputs, gates: 3, defaults: Self.activations, peephole: false)
    let linear = linearBeforeReset
    return try run.evaluate(withCell: false) { state in
      let n = state.hidden
      var reset = [Double](repeating: 0, count: n)
      for i in 0..<n { reset[i] = state.f(state.gate(1, i)) }
      for i in 0..<n {
        let update = state.f(state.gate(0, i))
        let recurrent: Double
        if linear {
          recurrent = reset[i] * (state.recurrentPart(2, i) + state.recurrentBias(2, i))
        } else {
          recurrent = state.recurrentProduct(2, i) { reset[$0] } + state.recurrentBias(2, i)
        }
        let candidate = state.g(state.inputPart(2, i) + recurrent)
        state.newHidden[i] = (1 - update) * candidate + update * state.previous[i]
      }
    }
  }
}

/// Simple recurrent network (ONNX `RNN`): operands X, W, R, B?, sequence_lens?, initial_h?; results Y,
/// Y_h.
public struct RNN: CostedOperator {
  public static let name = "RNN"
  public var recurrent: RecurrentAttributes

  /// Creates the operator.
  public init(_ recurrent: RecurrentAttributes) { self.recurrent = recurrent }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    recurrent = try RecurrentAttributes(reading: &attributes)
  }

  public var attributes: Attributes { recurrent.attributes }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    try recurrent.infer(inputs, gates: 1, stateCount: 1)
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    RecurrentRun.operations(inputs, outputs, gates: 1)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var run = try RecurrentRun(
      recurrent, inputs, gates: 1, defaults: ["Tanh"], peephole: false)
    return try run.evaluate(withCell: false) { state in
      for i in 0..<state.hidden { state.newHidden[i] = state.f(state.gate(0, i)) }
    }
  }
}
