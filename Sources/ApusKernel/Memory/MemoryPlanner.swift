// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// When a buffer is alive and how big it is. Steps are launch numbers, both ends included.
public struct Lifetime: Sendable, Hashable {
  /// The first step that writes it.
  public var first: Int
  /// The last step that reads it.
  public var last: Int
  /// The size in bytes.
  public var byteCount: Int

  /// Creates a lifetime.
  public init(first: Int, last: Int, byteCount: Int) {
    self.first = first
    self.last = last
    self.byteCount = byteCount
  }

  /// Whether both are alive at some step.
  public func overlaps(_ other: Lifetime) -> Bool { first <= other.last && other.first <= last }
}

/// Offsets in one arena.
public struct MemoryPlan: Sendable, Hashable {
  /// The offset of each buffer, in the order of the lifetimes.
  public var offsets: [Int]
  /// The size of the arena.
  public var peakByteCount: Int
  /// The size if nothing shared memory.
  public var naiveByteCount: Int
  /// The most bytes alive at any one step: no plan can be smaller.
  public var lowerBoundByteCount: Int
}

/// Plans one arena from lifetimes: buffers share bytes whenever they are never alive together.
///
/// Two greedy orders are tried, largest buffer first and earliest first, each placing a buffer at
/// the lowest gap among the already placed ones that overlap it in time (offset calculation by
/// "greedy by size" as in Pisarchyk and Lee, 2020); the smaller plan wins.
public enum MemoryPlanner {
  /// The boundary every buffer starts on.
  public static let alignment = 64

  /// Plans the arena.
  public static func plan(_ lifetimes: [Lifetime]) -> MemoryPlan {
    let sizes = lifetimes.map { ($0.byteCount + alignment - 1) / alignment * alignment }
    let bySize = lifetimes.indices.sorted {
      (-sizes[$0], lifetimes[$0].first, $0) < (-sizes[$1], lifetimes[$1].first, $1)
    }
    let byTime = lifetimes.indices.sorted {
      (lifetimes[$0].first, -sizes[$0], $0) < (lifetimes[$1].first, -sizes[$1], $1)
    }
    let plans = [bySize, byTime].map { place($0, lifetimes, sizes) }
    let best = plans[1].peak < plans[0].peak ? plans[1] : plans[0]
    return MemoryPlan(
      offsets: best.offsets, peakByteCount: best.peak, naiveByteCount: sizes.reduce(0, +),
      lowerBoundByteCount: lowerBound(lifetimes, sizes))
  }

  private static func place(_ order: [Int], _ lifetimes: [Lifetime], _ sizes: [Int])
    -> (offsets: [Int], peak: Int)
  {
    var offsets = [Int](repeating: 0, count: lifetimes.count)
    var placed: [Int] = []
    var peak = 0
    for index in order {
      var offset = 0
      for other in placed where lifetimes[other].overlaps(lifetimes[index]) {
        if offsets[other] >= offset + sizes[index] { break }
        offset = max(offset, offsets[other] + sizes[other])
      }
      offsets[index] = offset
      peak = max(peak, offset + sizes[index])
      // `placed` stays sorted by offset, so the scan above meets gaps from the bottom up.
      let slot = placed.firstIndex { offsets[$0] > offset } ?? placed.count
      placed.insert(index, at: slot)
    }
    return (offsets, peak)
  }

  private static func lowerBound(_ lifetimes: [Lifetime], _ sizes: [Int]) -> Int {
    var change: [Int: Int] = [:]
    for (lifetime, size) in zip(lifetimes, sizes) {
      change[lifetime.first, default: 0] += size
      change[lifetime.last + 1, default: 0] -= size
    }
    var alive = 0
    var most = 0
    for step in change.keys.sorted() {
      alive += change[step] ?? 0
      most = max(most, alive)
    }
    return most
  }
}
