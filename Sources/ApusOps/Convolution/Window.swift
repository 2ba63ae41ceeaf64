// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// How a sliding window's padding is determined.
public enum AutoPad: String, Sendable, Hashable {
  /// By the operator's pads.
  case notset
  /// So that the output is the input divided by the stride, rounded up; odd padding at the end.
  case sameUpper = "same_upper"
  /// As `sameUpper`, odd padding at the beginning.
  case sameLower = "same_lower"
  /// None.
  case valid
}

/// A sliding window over spatial axes, shared by convolutions and pooling.
public struct Window: Sendable, Hashable {
  /// Sizes of the window.
  public var kernel: [Int]
  /// Steps between windows.
  public var strides: [Int]
  /// Steps between the elements of a window.
  public var dilations: [Int]
  /// Padding before each axis.
  public var begin: [Int]
  /// Padding after each axis.
  public var end: [Int]
  /// Sizes of the result.
  public var output: [Int]

  /// Resolves a window over an input of these spatial sizes.
  ///
  /// Empty lists stand for ones (strides, dilations) and zeros (pads).
  /// - Throws: `invalid-attribute` for counts or sizes that do not fit the input.
  public init(
    input: [Int], kernel: [Int], strides: [Int], dilations: [Int], pads: [Int], autoPad: AutoPad,
    ceilMode: Bool = false
  ) throws(ApusError) {
    let rank = input.count
    let strides = strides.isEmpty ? Array(repeating: 1, count: rank) : strides
    let dilations = dilations.isEmpty ? Array(repeating: 1, count: rank) : dilations
    let pads = pads.isEmpty ? Array(repeating: 0, count: 2 * rank) : pads
    guard kernel.count == rank, strides.count == rank, dilations.count == rank,
      pads.count == 2 * rank
    else {
      throw ApusError(
        .invalidAttribute,
        "kernel \(kernel), strides \(strides), dilations \(dilations) or pads \(pads) do not fit \(rank) spatial axes"
      )
    }
    let limit = 1 << 31
    guard kernel.allSatisfy({ $0 > 0 && $0 < limit }), strides.allSatisfy({ $0 > 0 && $0 < limit }),
      dilations.allSatisfy({ $0 > 0 && $0 < limit }), input.allSatisfy({ $0 >= 0 && $0 < limit }),
      pads.allSatisfy({ $0 > -limit && $0 < limit })
    else {
      throw ApusError(
        .invalidAttribute,
        "kernel \(kernel), strides \(strides) and dilations \(dilations) must be positive and sizes below 2^31"
      )
    }
    self.kernel = kernel
    self.strides = strides
    self.dilations = dilations
    begin = Array(pads.prefix(rank))
    end = Array(pads.suffix(rank))
    output = []
    for axis in 0..<rank {
      let extent = (kernel[axis] - 1) * dilations[axis] + 1
      switch autoPad {
      case .notset: break
      case .valid:
        begin[axis] = 0
        end[axis] = 0
      case .sameUpper, .sameLower:
        let size = (input[axis] + strides[axis] - 1) / strides[axis]
        let total = max(0, (size - 1) * strides[axis] + extent - input[axis])
        begin[axis] = autoPad == .sameUpper ? total / 2 : (total + 1) / 2
        end[axis] = total - begin[axis]
      }
      let room = input[axis] + begin[axis] + end[axis] - extent
      guard room >= 0 else {
        output.append(0)
        continue
      }
      var size = room / strides[axis] + 1
      if ceilMode, room % strides[axis] != 0 {
        // A last window must begin inside the input or the padding before it.
        if size * strides[axis] < input[axis] + begin[axis] { size += 1 }
      }
      output.append(size)
    }
  }
}

/// An operator over spatial axes that has a channels-last form: `[N, spatial..., C]`.
public protocol ChannelsLastConvertible: Operator {
  /// Whether it is in that form already.
  var isChannelsLast: Bool { get }
  /// The same operator in that form; nil when there is none.
  func channelsLast() -> (any Operator)?
  /// The permutations that take weight operands into that form, by operand number.
  func weightPermutations(rank: Int) -> [Int: [Int]]
}

extension ChannelsLastConvertible {
  public func weightPermutations(rank: Int) -> [Int: [Int]] { [:] }
}

/// Where the axes of a spatial tensor are.
struct SpatialLayout {
  let channelsLast: Bool
  let rank: Int

  var channelAxis: Int { channelsLast ? rank - 1 : 1 }
  var spatialAxes: Range<Int> { channelsLast ? 1..<(rank - 1) : 2..<rank }

  /// The spatial sizes of a shape.
  func spatial<Size>(_ shape: [Size]) -> [Size] { Array(shape[spatialAxes]) }

  /// A shape from its parts.
  func shape<Size>(_ batch: Size, _ channels: Size, _ spatial: [Size]) -> [Size] {
    channelsLast ? [batch] + spatial + [channels] : [batch, channels] + spatial
  }
}

/// Symbolic sizes of a window's result, for axes whose size is not known.
enum WindowInference {
  /// The result's spatial dimensions; each axis is resolved by itself.
  static func output(
    _ input: [Dim], kernel: [Int?], _ inputs: InferenceInputs,
    resolve: (_ input: [Int], _ kernel: [Int]) throws(ApusError) -> Window
  ) throws(ApusError) -> [Dim] {
    let sizes = input.compactMap(\.value)
    let extents = kernel.compactMap { $0 }
    if sizes.count == input.count, extents.count == kernel.count {
      return try resolve(sizes, extents).output.map { Dim($0) }
    }
    // Axes are independent: put a stand-in size on the open ones and keep the others' results.
    let standIns = input.map { $0.value ?? 1 << 20 }
    guard extents.count == kernel.count, let window = try? resolve(standIns, extents) else {
      return input.indices.map { inputs.freshDim("spatial\($0)") }
    }
    return input.indices.map { axis in
      if input[axis].value != nil { return Dim(window.output[axis]) }
      let keeps = window.strides[axis] == 1 && window.output[axis] == 1 << 20
      return keeps ? input[axis] : inputs.freshDim("spatial\(axis)")
    }
  }
}
