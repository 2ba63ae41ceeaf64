// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusOps
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
    let computing = work.operationsByType.map { type, count in
      count / (operations[type] ?? operations[.float32] ?? .infinity)
    }.sorted().reduce(0, +)
    let level = traffic.first { Double($0.footprint) >= work.bytes } ?? traffic.last
    return max(computing, work.bytes / (level?.rate ?? .infinity))
  }

  /// The share of the bound that work done in so many seconds reaches; nil for unknown work.
  public func share(of work: KernelWork?, _ seconds: Double) -> Double? {
    work.map { leastSeconds($0) / seconds }
  }
}

/// What a problem asks of a device.
public struct KernelWork: Sendable, Hashable {
  /// Arithmetic operations of the direct algorithm, by the type of what is multiplied: `int8` for bytes of either kind.
  /// A chain may multiply several types.
  public var operationsByType: [DataType: Double] = [:]
  /// Bytes that are read and written at least.
  public var bytes: Double

  /// All operations.
  public var operations: Double { operationsByType.values.sorted().reduce(0, +) }

  /// The work of a problem.
  public init(_ problem: Problem) {
    let cost = problem.cost
    bytes = cost.bytes
    for stage in (try? problem.stages()) ?? [problem] {
      operationsByType[Self.type(stage), default: 0] += stage.cost.operations
    }
  }

  /// The same work several times.
  public mutating func multiply(by count: Int) {
    operationsByType = operationsByType.mapValues { $0 * Double(count) }
    bytes *= Double(count)
  }

  private static func type(_ problem: Problem) -> DataType {
    switch problem.inputs.first??.dataType {
    case .uint8, .int8: .int8
    case .bfloat16: .bfloat16
    default: .float32
    }
  }
}
