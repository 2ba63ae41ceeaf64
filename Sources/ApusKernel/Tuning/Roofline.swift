// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

/// What a device reaches at most, as measured: the bound of S. Williams, A. Waterman and D. Patterson, "Roofline: an
/// insightful visual performance model for multicore architectures", 2009, with a memory bound for each footprint.
public struct Roofline: Sendable, Hashable {
  /// How fast so much memory is read again and again.
  public struct Traffic: Sendable, Hashable {
    /// The largest footprint in bytes that this holds for.
    public var footprint: Int
    /// Bytes in a second.
    public var rate: Double

    /// Describes a level of the memory hierarchy by what fits it.
    public init(footprint: Int, rate: Double) {
      self.footprint = footprint
      self.rate = rate
    }
  }

  /// Operations in a second, by the type of what is multiplied.
  public var operations: [DataType: Double]
  /// Memory traffic, from small footprints to large ones.
  public var traffic: [Traffic]

  /// Describes a device.
  public init(operations: [DataType: Double], traffic: [Traffic]) {
    self.operations = operations
    self.traffic = traffic
  }

  /// The seconds that the device cannot do some work in less than. Algorithms that need fewer operations than the
  /// direct one can.
  public func leastSeconds(_ work: KernelWork) -> Double {
    let peak = operations[work.type] ?? operations[.float32] ?? .infinity
    let level = traffic.first { Double($0.footprint) >= work.bytes } ?? traffic.last
    return max(work.operations / peak, work.bytes / (level?.rate ?? .infinity))
  }

  /// The share of the bound that work done in so many seconds reaches; nil for unknown work.
  public func share(of work: KernelWork?, _ seconds: Double) -> Double? {
    work.map { leastSeconds($0) / seconds }
  }
}

/// What a problem asks of a device.
public struct KernelWork: Sendable, Hashable {
  /// Arithmetic operations of the direct algorithm.
  public var operations: Double
  /// Bytes that are read and written at least.
  public var bytes: Double
  /// The type of what is multiplied: `int8` for bytes of either kind.
  public var type: DataType

  /// The work of a problem.
  public init(_ problem: Problem) {
    let cost = problem.cost
    operations = cost.operations
    bytes = cost.bytes
    switch problem.inputs.first??.dataType {
    case .uint8, .int8: type = .int8
    case .bfloat16: type = .bfloat16
    default: type = .float32
    }
  }
}
