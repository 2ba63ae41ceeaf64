// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The attributes that the recurrent operators share (ONNX `RNN`, `GRU`, `LSTM`).
public struct RecurrentAttributes: Sendable, Hashable {
  /// Which way the sequence is read.
  public enum Direction: String, Sendable, Hashable {
    case forward, reverse, bidirectional
  }

  public var hiddenSize: Int
  public var direction: Direction
  /// The activation functions by name; empty for the operator's own.
  public var activations: [String]
  public var activationAlpha: [Double]
  public var activationBeta: [Double]
  /// The bound that gate inputs are clipped to; zero for none.
  public var clip: Double
  /// 0: `[sequence, batch, ...]`; 1: `[batch, sequence, ...]`.
  public var layout: Int
  /// Whether W and R are stored as `[inputs, directions, rows]`, as kernels read them, not as
  /// `[directions, rows, inputs]`.
  public var readsWeightsByInput = false

  /// Creates the attributes.
  public init(
    hiddenSize: Int, direction: Direction = .forward, activations: [String] = [],
    activationAlpha: [Double] = [], activationBeta: [Double] = [], clip: Double = 0,
    layout: Int = 0
  ) {
    self.hiddenSize = hiddenSize
    self.direction = direction
    self.activations = activations
    self.activationAlpha = activationAlpha
    self.activationBeta = activationBeta
    self.clip = clip
    self.layout = layout
  }

  init(reading attributes: inout AttributeReader) throws(ApusError) {
    hiddenSize = try attributes.int("hidden_size")
    direction = try attributes.choice("direction", Direction.forward)
    activations = try attributes.strings("activations", [])
    activationAlpha = try attributes.floats("activation_alpha", [])
    activationBeta = try attributes.floats("activation_beta", [])
    clip = try attributes.float("clip", 0)
    layout = try attributes.int("layout", 0)
    readsWeightsByInput = try attributes.bool("reads_weights_by_input", false)
  }

  var attributes: Attributes {
    var result: Attributes = [
      "hidden_size": .int(hiddenSize), "direction": .string(direction.rawValue),
      "activations": .strings(activations), "activation_alpha": .floats(activationAlpha),
      "activation_beta": .floats(activationBeta), "clip": .float(clip), "layout": .int(layout),
    ]
    if readsWeightsByInput { result["reads_weights_by_input"] = .bool(true) }
    return result
  }

  /// Whether cells have the usual activation functions, `defaults`, and sequences come first: what kernels
  /// take.
  public func isPlain(_ defaults: [String]) -> Bool {
    let usual = (0..<directionCount).flatMap { _ in defaults.map { $0.lowercased() } }
    return clip == 0 && layout == 0
      && (activations.isEmpty || activations.map { $0.lowercased() } == usual)
  }

  /// The number of directions.
  public var directionCount: Int { direction == .bidirectional ? 2 : 1 }

  /// Whether direction `index` reads backwards.
  public func isBackwards(_ index: Int) -> Bool {
    direction == .reverse || (direction == .bidirectional && index == 1)
  }

  /// The types of Y, Y_h and, for `stateCount` 2, Y_c.
  func infer(_ inputs: InferenceInputs, gates: Int, stateCount: Int) throws(ApusError) -> [ValueType]
  {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat else {
      throw ApusError(.typeMismatch, "the input \(x) must be of a floating-point type")
    }
    guard hiddenSize > 0, hiddenSize < 1 << 31 else {
      throw ApusError(.invalidAttribute, "'hidden_size' is \(hiddenSize)")
    }
    guard layout == 0 || layout == 1 else {
      throw ApusError(.invalidAttribute, "'layout' is \(layout), not 0 or 1")
    }
    guard let dims = x.dims else {
      return Array(repeating: typed(x.dataType, nil), count: 1 + stateCount)
    }
    guard dims.count == 3 else {
      throw ApusError(.typeMismatch, "the input \(x) must have three axes")
    }
    if let w = try inputs.tensor(1).dims, w.count == 3,
      let rows = w[readsWeightsByInput ? 2 : 1].value,
      rows != gates * hiddenSize
    {
      throw ApusError(
        .typeMismatch, "W has \(rows) rows, \(gates) gates of \(hiddenSize) need \(gates * hiddenSize)")
    }
    let (sequence, batch) = layout == 0 ? (dims[0], dims[1]) : (dims[1], dims[0])
    let directions = Dim(directionCount)
    let hidden = Dim(hiddenSize)
    let y =
      layout == 0
      ? [sequence, directions, batch, hidden] : [batch, sequence, directions, hidden]
    let state = layout == 0 ? [directions, batch, hidden] : [batch, directions, hidden]
    return [typed(x.dataType, y)] + Array(repeating: typed(x.dataType, state), count: stateCount)
  }
}

/// An activation function of a recurrent cell.
struct CellActivation {
  private enum Kind: String {
    case sigmoid, tanh, relu, affine, leakyrelu, thresholdedrelu, scaledtanh, hardsigmoid, elu
    case softsign, softplus

    /// The parameters it takes and what they are when none are given.
    var defaults: (alpha: Double?, beta: Double?) {
      switch self {
      case .affine: (1, 0)
      case .leakyrelu: (0.01, nil)
      case .thresholdedrelu, .elu: (1, nil)
      case .scaledtanh: (1, 1)
      case .hardsigmoid: (0.2, 0.5)
      case .sigmoid, .tanh, .relu, .softsign, .softplus: (nil, nil)
      }
    }
  }

  private let kind: Kind
  private let alpha: Double
  private let beta: Double

  /// The function of this name; one that has parameters takes them off the front of the lists.
  init(_ name: String, alphas: inout ArraySlice<Double>, betas: inout ArraySlice<Double>)
    throws(ApusError)
  {
    guard let kind = Kind(rawValue: name.lowercased()) else {
      throw ApusError(.invalidAttribute, "there is no activation function '\(name)'")
    }
    self.kind = kind
    let defaults = kind.defaults
    alpha = defaults.alpha.map { alphas.popFirst() ?? $0 } ?? 0
    beta = defaults.beta.map { betas.popFirst() ?? $0 } ?? 0
  }

  func callAsFunction(_ x: Double) -> Double {
    switch kind {
    case .sigmoid: RealMath.sigmoid(x)
    case .tanh: RealMath.hyperbolicTangent(x)
    case .relu: max(0, x)
    case .affine: alpha * x + beta
    case .leakyrelu: x >= 0 ? x : alpha * x
    case .thresholdedrelu: x > alpha ? x : 0
    case .scaledtanh: alpha * RealMath.hyperbolicTangent(beta * x)
    case .hardsigmoid: max(0, min(1, alpha * x + beta))
    case .elu: x >= 0 ? x : alpha * (RealMath.exponential(x) - 1)
    case .softsign: x / (1 + abs(x))
    case .softplus: max(x, 0) + RealMath.logarithm(1 + RealMath.exponential(-abs(x)))
    }
  }
}
