// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// `ArgMax` and `ArgMin` of float32 over any axis, seen as `[outer, size, inner]`: long axes are cut into
/// parts of fixed size, whose best places are compared in order.
struct ExtremumTactic: Tactic {
  let name = "cpu.extremum.f32"
  let source = "native"
  let pool: ThreadPool

  private func read(_ problem: Problem) -> ExtremumPlan? {
    let (axis, isLargest, takesLast): (Int, Bool, Bool)
    switch problem.op {
    case let op as ArgMax: (axis, isLargest, takesLast) = (op.axis, true, op.selectLastIndex)
    case let op as ArgMin: (axis, isLargest, takesLast) = (op.axis, false, op.selectLastIndex)
    default: return nil
    }
    guard problem.inputs.count == 1, let x = problem.inputs[0], x.dataType == .float32, x.count > 0,
      x.packing == nil
    else { return nil }
    let at = axis < 0 ? axis + x.shape.count : axis
    guard x.shape.indices.contains(at) else { return nil }
    return ExtremumPlan(
      outer: x.shape[..<at].reduce(1, *), size: x.shape[at],
      inner: x.shape[(at + 1)...].reduce(1, *), isLargest: isLargest, takesLast: takesLast)
  }

  func support(_ problem: Problem) -> Support {
    read(problem) == nil ? .no(because: "not the place of an extreme float32") : .yes
  }

  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double {
    problem.cost.bytes * 2e-10
  }

  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  {
    guard let plan = read(problem) else { throw ApusError(.internalError, "no extremum") }
    return ExtremumKernel(plan: plan, pool: pool)
  }
}

private struct ExtremumKernel: Kernel {
  let plan: ExtremumPlan
  let pool: ThreadPool
  var workspaceByteCount: Int { plan.bestCount * MemoryLayout<ExtremumPlan.Best>.stride }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let x = arguments.floats(0)
    let y = arguments[1].mutablePointer.assumingMemoryBound(to: Int64.self)
    let best = arguments[2].mutablePointer.assumingMemoryBound(to: ExtremumPlan.Best.self)
    pool.parallelFor(plan.units, (plan, x, best)) { context, unit in
      let (plan, x, best) = context
      plan.find(unit, x, best)
    }
    plan.join(best, y)
  }
}

/// The search for places of extreme elements. As in the reference a NaN is greater than every number, zeros
/// are equal, and of equal elements the first or the last is taken.
private struct ExtremumPlan: Sendable {
  let outer: Int
  let size: Int
  let inner: Int
  let isLargest: Bool
  let takesLast: Bool

  /// The key of an element and its place on the axis.
  struct Best {
    var key: Int32
    var place: Int
  }

  private typealias Keys = SIMD16<Int32>
  private static let lanes = Keys.scalarCount

  /// Columns that are searched together: each row is read in pieces that long.
  private static let blockLanes = 1024
  /// Places of the axis in a part.
  private var chunk: Int { max(64, 32768 / min(inner, Self.blockLanes)) }
  private var parts: Int { (size + chunk - 1) / chunk }
  private var blocks: Int { (inner + Self.blockLanes - 1) / Self.blockLanes }
  var units: Int { outer * parts * blocks }
  var bestCount: Int { outer * parts * inner }

  /// Integers in the order in which the largest one is wanted.
  @inline(__always)
  private func keys(_ x: SIMD16<Float>) -> Keys {
    // The sum makes zeros equal; negative numbers are ordered by their complements.
    let bits = unsafeBitCast(x + 0, to: Keys.self)
    var keys = bits ^ ((bits &>> 31) & Keys(repeating: .max))
    keys.replace(with: .max, where: x .!= x)
    return isLargest ? keys : ~keys
  }

  @inline(__always)
  private func isBetter(_ a: Int32, _ b: Int32) -> Bool { takesLast ? a >= b : a > b }

  /// Finds the best places of the lanes of a unit.
  func find(_ unit: Int, _ x: UnsafePointer<Float>, _ best: UnsafeMutablePointer<Best>) {
    let (rows, block) = unit.quotientAndRemainder(dividingBy: blocks)
    let (row, part) = rows.quotientAndRemainder(dividingBy: parts)
    let places = part * chunk..<min(size, (part + 1) * chunk)
    let target = best + rows * inner
    if inner == 1 {
      target.initialize(to: along(x + row * size, places))
      return
    }
    let first = block * Self.blockLanes
    down(
      x + (row * size * inner + first), places, lanes: min(Self.blockLanes, inner - first),
      target + first)
  }

  /// The best of neighbours: vectors that have none better are passed over.
  private func along(_ x: UnsafePointer<Float>, _ places: Range<Int>) -> Best {
    var best = Best(key: keys(SIMD16(repeating: x[places.lowerBound]))[0], place: places.lowerBound)
    var place = places.lowerBound
    while place < places.upperBound {
      let count = min(Self.lanes, places.upperBound - place)
      let vector = load(x + place, count)
      let found = keys(vector)
      let limit = Keys(repeating: best.key)
      let mask = takesLast ? found .>= limit : found .> limit
      if any(mask) {
        for lane in 0..<count where isBetter(found[lane], best.key) {
          best = Best(key: found[lane], place: place + lane)
        }
      }
      place += count
    }
    return best
  }

  /// The best of each of `lanes` columns side by side.
  private func down(
    _ x: UnsafePointer<Float>, _ places: Range<Int>, lanes: Int,
    _ target: UnsafeMutablePointer<Best>
  ) {
    let vectors = (lanes + Self.lanes - 1) / Self.lanes
    withUnsafeTemporaryAllocation(of: Keys.self, capacity: 2 * vectors) { memory in
      guard let best = memory.baseAddress else { return }
      let found = best + vectors
      for vector in 0..<vectors {
        (best + vector).initialize(to: rowKeys(x + places.lowerBound * inner, vector, lanes))
        (found + vector).initialize(to: Keys(repeating: 0))
      }
      for place in places.dropFirst() {
        let number = Int32(truncatingIfNeeded: place - places.lowerBound)
        for vector in 0..<vectors {
          let row = rowKeys(x + place * inner, vector, lanes)
          // In registers: elements of vectors in memory would be replaced one by one.
          var winners = best[vector]
          var numbers = found[vector]
          let mask = takesLast ? row .>= winners : row .> winners
          winners.replace(with: row, where: mask)
          numbers.replace(with: number, where: mask)
          best[vector] = winners
          found[vector] = numbers
        }
      }
      for lane in 0..<lanes {
        let (vector, index) = lane.quotientAndRemainder(dividingBy: Self.lanes)
        (target + lane).initialize(
          to: Best(key: best[vector][index], place: places.lowerBound + Int(found[vector][index])))
      }
    }
  }

  /// The keys of a vector of a row of `lanes` elements.
  @inline(__always)
  private func rowKeys(_ row: UnsafePointer<Float>, _ vector: Int, _ lanes: Int) -> Keys {
    let first = vector * Self.lanes
    return keys(load(row + first, min(Self.lanes, lanes - first)))
  }

  @inline(__always)
  private func load(_ x: UnsafePointer<Float>, _ count: Int) -> SIMD16<Float> {
    if count == Self.lanes { return UnsafeRawPointer(x).loadUnaligned(as: SIMD16<Float>.self) }
    var vector = SIMD16<Float>(repeating: x[0])
    for lane in 1..<max(1, count) { vector[lane] = x[lane] }
    return vector
  }

  /// The best of all parts, in their order.
  func join(_ best: UnsafePointer<Best>, _ y: UnsafeMutablePointer<Int64>) {
    for row in 0..<outer {
      for lane in 0..<inner {
        var winner = best[row * parts * inner + lane]
        for part in 1..<max(1, parts) {
          let other = best[(row * parts + part) * inner + lane]
          if isBetter(other.key, winner.key) { winner = other }
        }
        y[row * inner + lane] = Int64(winner.place)
      }
    }
  }
}
