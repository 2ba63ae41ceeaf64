// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Softmax of a few long rows, in parts that go through memory twice instead of three times: a part stores
/// the exponentials of its elements less its own largest one while they are in the first-level cache, and
/// is scaled when the largest of the row and the sum of all parts are known (the online softmax of
/// Milakov and Gimelshein, 2018). The parts depend on the length of the rows alone.
package final class SplitSoftmaxPlan: Sendable {
  /// Scratch memory a run needs: the largest element, the sum and the factor of every part.
  package let workspaceByteCount: Int
  private let columns: Int
  private let rows: Int
  private let parts: Int
  /// Of whole parts, then of the last one.
  private let exponentials: [RowKernel]
  private let scales: [RowKernel]

  /// Elements of a part.
  private static let chunk = 4096

  /// Plans `rows` rows of `columns` elements.
  ///
  /// - Throws: `not-yet-supported` where there is no vector code.
  package init(columns: Int, rows: Int, isa: ISA = .current) throws(ApusError) {
    guard columns > 0, rows > 0 else { throw ApusError(.notYetSupported, "a softmax of nothing") }
    self.columns = columns
    self.rows = rows
    parts = (columns + Self.chunk - 1) / Self.chunk
    workspaceByteCount = 3 * rows * parts * 4
    let widths = [min(columns, Self.chunk), (columns - 1) % Self.chunk + 1]
    // Operands: elements, then where the part's largest element and sum go.
    let x = ScalarExpr.input(0)
    let lowest = ScalarExpr.const(-Double(Float.greatestFiniteMagnitude))
    exponentials = try widths.map { width throws(ApusError) in
      try RowKernel(
        columns: width, operands: [.rows, .scalar, .scalar],
        steps: [
          // Where nothing is finite the exponentials are zeros, not differences of infinities.
          .reduce(.largest, x), .scalar(.max(.input(4), lowest)),
          .storeAndReduce(.unary(.exponential, x - .input(5)), .sum),
          .export(.input(5), operand: 1), .export(.input(6), operand: 2),
        ], isa: isa)
    }
    scales = try widths.map { width throws(ApusError) in
      try RowKernel(
        columns: width, operands: [.rows, .scalar], steps: [.store(x * .input(1))], isa: isa)
    }
  }

  /// Computes; `workspace` has `workspaceByteCount` bytes.
  package func run(
    _ x: UnsafeRawPointer, result: UnsafeMutableRawPointer, workspace: UnsafeMutableRawPointer,
    pool: ThreadPool
  ) {
    let largest = workspace.assumingMemoryBound(to: Float.self)
    let sums = largest + rows * parts
    let factors = sums + rows * parts
    pool.parallelFor(rows * parts, (self, x, result, largest, sums)) { context, task in
      let (plan, x, result, largest, sums) = context
      let offset = plan.offset(task)
      withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 3) { list in
        guard let base = list.baseAddress else { return }
        base.initialize(to: x + offset)
        (base + 1).initialize(to: UnsafeRawPointer(largest + task))
        (base + 2).initialize(to: UnsafeRawPointer(sums + task))
        plan.kernel(plan.exponentials, task).runOne(base, result: result + offset)
      }
    }
    for row in 0..<rows { join(row * parts..<(row + 1) * parts, largest, sums, factors) }
    pool.parallelFor(rows * parts, (self, result, factors)) { context, task in
      let (plan, result, factors) = context
      let place = result + plan.offset(task)
      withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: 2) { list in
        guard let base = list.baseAddress else { return }
        base.initialize(to: UnsafeRawPointer(place))
        (base + 1).initialize(to: UnsafeRawPointer(factors + task))
        plan.kernel(plan.scales, task).runOne(base, result: place)
      }
    }
  }

  /// Bytes from the first element to a part.
  private func offset(_ task: Int) -> Int {
    let (row, part) = task.quotientAndRemainder(dividingBy: parts)
    return (row * columns + part * Self.chunk) * 4
  }

  private func kernel(_ kernels: [RowKernel], _ task: Int) -> RowKernel {
    kernels[task % parts == parts - 1 ? 1 : 0]
  }

  /// The factors of a row's parts.
  private func join(
    _ tasks: Range<Int>, _ largest: UnsafePointer<Float>, _ sums: UnsafePointer<Float>,
    _ factors: UnsafeMutablePointer<Float>
  ) {
    let top = tasks.reduce(-Float.infinity) { RowKernel.Reduction.largest.combine($0, largest[$1]) }
    var sum: Float = 0
    for task in tasks {
      factors[task] = expf(largest[task] - top)
      sum += sums[task] * factors[task]
    }
    for task in tasks { factors[task] /= sum }
  }
}
