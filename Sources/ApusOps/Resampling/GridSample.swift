// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The input at given places (ONNX `GridSample`; Jaderberg et al., 2015): operands X
/// `[N, C, spatial...]` and a grid `[N, places..., rank]` whose last axis holds coordinates from -1
/// to 1, that of the last spatial axis first.
public struct GridSample: TolerantOperator {
  public static let name = "GridSample"

  /// How values between elements come about.
  public enum Mode: String, Sendable, Hashable { case nearest, linear, cubic }

  /// What lies outside the input.
  public enum Padding: String, Sendable, Hashable, CaseIterable { case zeros, border, reflection }

  public var mode: Mode
  public var padding: Padding
  /// Whether -1 and 1 are the centres of the outermost elements instead of their outer edges.
  public var alignCorners: Bool

  /// Creates the operator.
  public init(mode: Mode = .linear, padding: Padding = .zeros, alignCorners: Bool = false) {
    self.mode = mode
    self.padding = padding
    self.alignCorners = alignCorners
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    mode = try attributes.choice("mode", Mode.linear)
    padding = try attributes.choice("padding", Padding.zeros)
    alignCorners = try attributes.bool("align_corners", false)
  }

  public var attributes: Attributes {
    [
      "mode": .string(mode.rawValue), "padding": .string(padding.rawValue),
      "align_corners": .bool(alignCorners),
    ]
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 1e-5 : 4e-3)
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let grid = try inputs.tensor(1)
    guard x.dataType.isFloat, grid.dataType.isFloat else {
      throw ApusError(.typeMismatch, "sampling \(x) at \(grid)")
    }
    guard let xDims = x.dims, let gridDims = grid.dims else { return [typed(x.dataType, nil)] }
    let rank = xDims.count - 2
    func agree(_ a: Dim, _ b: Dim) -> Bool { a.value == nil || b.value == nil || a == b }
    guard rank >= 1, rank <= 3, gridDims.count == xDims.count, agree(xDims[0], gridDims[0]),
      agree(gridDims[rank + 1], Dim(rank))
    else { throw ApusError(.typeMismatch, "sampling \(x) at \(grid)") }
    return [typed(x.dataType, [xDims[0], xDims[1]] + gridDims[1...rank])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let grid = try inputs.required(1).doubles()
    guard let shape = inferred[0].tensor?.shape else {
      throw ApusError(.typeMismatch, "the operands do not fit")
    }
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    if result.isEmpty { return [.tensor(try Tensor(x.dataType, shape: shape))] }
    let sizes = Array(x.shape[2...])
    let inner = sizes.reduce(1, &*)
    guard inner > 0 else {
      throw ApusError(.typeMismatch, "the input \(x.type) has no elements to sample")
    }
    let rank = sizes.count
    let (batch, channels) = (x.shape[0], x.shape[1])
    let places = shape[2...].reduce(1, &*)
    let values = x.doubles()
    for n in 0..<batch {
      for place in 0..<places {
        let start = (n * places + place) * rank
        let taps = taps(Array(grid[start..<(start + rank)].reversed()), sizes)
        for c in 0..<channels {
          let base = (n * channels + c) * inner
          var sum = 0.0
          for (index, weight) in taps { sum += values[base + index] * weight }
          result[(n * channels + c) * places + place] = sum
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }

  /// The elements and weights that make up the value at these coordinates.
  private func taps(_ coordinates: [Double], _ sizes: [Int]) -> [(index: Int, weight: Double)] {
    var taps: [(index: Int, weight: Double)] = [(0, 1)]
    for (coordinate, size) in zip(coordinates, sizes) {
      let along = axisTaps(coordinate, size)
      taps = taps.flatMap { old in
        along.map { (index: old.index * size + $0.index, weight: old.weight * $0.weight) }
      }
    }
    return taps
  }

  private func axisTaps(_ coordinate: Double, _ size: Int) -> [(index: Int, weight: Double)] {
    let length = Double(size)
    let (low, high) = alignCorners ? (0, length - 1) : (-0.5, length - 0.5)
    var x = alignCorners ? (coordinate + 1) / 2 * (length - 1) : ((coordinate + 1) * length - 1) / 2
    x = x.isNaN ? -1 : max(-0x1p30, min(0x1p30, x))
    if mode == .nearest { x = x.rounded(.toNearestOrEven) }
    if x < low || x > high {
      switch padding {
      case .zeros: break
      case .border: x = max(0, min(length - 1, x))
      case .reflection: x = Self.reflected(x, low, high)
      }
    }
    func tap(_ index: Int, _ weight: Double) -> (index: Int, weight: Double)? {
      if index >= 0 && index < size { return (index, weight) }
      switch padding {
      case .zeros: return nil
      case .border: return (max(0, min(size - 1, index)), weight)
      case .reflection:
        let place = Int(Self.reflected(Double(index), low, high))
        return (max(0, min(size - 1, place)), weight)
      }
    }
    if mode == .nearest { return [tap(Int(x.rounded(.toNearestOrEven)), 1)].compactMap { $0 } }
    let base = Int(x.rounded(.down))
    let part = x - Double(base)
    if mode == .linear { return [tap(base, 1 - part), tap(base + 1, part)].compactMap { $0 } }
    return (-1...2).compactMap { tap(base + $0, Self.cubic(abs(Double($0) - part))) }
  }

  private static func reflected(_ x: Double, _ low: Double, _ high: Double) -> Double {
    let range = high - low
    guard range > 0 else { return low }
    let distance = x < low ? low - x : (x > high ? x - high : 0)
    if distance == 0 { return x }
    let turns = (distance / range).rounded(.down)
    let rest = distance - turns * range
    let isEven = turns.truncatingRemainder(dividingBy: 2) == 0
    return (x < low) == isEven ? low + rest : high - rest
  }

  /// The weight of an element at this distance (Keys, 1981, with a = -0.75).
  private static func cubic(_ d: Double) -> Double {
    let a = -0.75
    if d <= 1 { return ((a + 2) * d - (a + 3)) * d * d + 1 }
    if d < 2 { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a }
    return 0
  }
}
