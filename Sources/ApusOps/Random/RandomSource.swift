// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Random numbers: SplitMix64 (Steele et al., 2014), started from a seed or from the system.
struct RandomSource {
  private var state: UInt64

  /// Equal seeds give equal numbers; without one, every source differs.
  init(seed: Double?) {
    if let seed {
      state = seed.bitPattern
    } else {
      var system = SystemRandomNumberGenerator()
      state = system.next()
    }
  }

  /// A number in `0..<1`.
  mutating func uniform() -> Double {
    state = state &+ 0x9e37_79b9_7f4a_7c15
    var bits = state
    bits = (bits ^ (bits >> 30)) &* 0xbf58_476d_1ce4_e5b9
    bits = (bits ^ (bits >> 27)) &* 0x94d0_49bb_1331_11eb
    bits ^= bits >> 31
    return Double(bits >> 11) * 0x1p-53
  }

  /// A number of the standard normal distribution (Box and Muller, 1958).
  mutating func normal() -> Double {
    let radius = (-2 * log(1 - uniform())).squareRoot()
    return radius * cos(2 * Double.pi * uniform())
  }
}

/// The distribution that random tensors are drawn from.
public enum RandomDistribution: Sendable, Hashable {
  case normal(mean: Double, scale: Double)
  case uniform(low: Double, high: Double)

  func tensor(_ shape: [Int], _ type: DataType, seed: Double?) throws(ApusError) -> Tensor {
    guard type.isFloat else {
      throw ApusError(.invalidAttribute, "random numbers of type \(type)")
    }
    // Refuses impossible sizes before the numbers are drawn.
    _ = try Tensor(type, shape: shape)
    var source = RandomSource(seed: seed)
    let count = try Tensor.checkedCount(shape)
    let values: [Double]
    switch self {
    case .normal(let mean, let scale):
      values = (0..<count).map { _ in mean + scale * source.normal() }
    case .uniform(let low, let high):
      values = (0..<count).map { _ in low + (high - low) * source.uniform() }
    }
    return try Tensor(values, type, shape: shape)
  }
}

extension AttributeReader {
  /// A seed that may be absent.
  mutating func seed() throws(ApusError) -> Double? {
    switch value("seed") {
    case .float(let value): return value
    case .int(let value): return Double(value)
    case nil: return nil
    default: throw ApusError(.invalidAttribute, "attribute 'seed' is not a number")
    }
  }

  /// An element type that may be absent.
  mutating func optionalType(_ name: String) throws(ApusError) -> DataType? {
    switch value(name) {
    case .type(let type): return type
    case nil: return nil
    default: throw ApusError(.invalidAttribute, "attribute '\(name)' is not an element type")
    }
  }
}

extension Attributes {
  /// These attributes and a seed, when there is one.
  func with(seed: Double?, type: DataType?) -> Attributes {
    var result = self
    if let seed { result["seed"] = .float(seed) }
    if let type { result["dtype"] = .type(type) }
    return result
  }
}
